"""evaluate: losses equal a story-by-story loop, intervals hold the estimate, Wilson by hand."""

import itertools
import json
import math

import pytest
import torch

from sat_lens import SelfAblatingTransformer, SelfAblation, checkpoint, evaluate, load_tokenizer
from sat_lens.presets import host_config
from sat_lens.stories import stories
from sat_lens.tasks import load_task


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tokenizer = load_tokenizer("stories-4096")
    model = SelfAblatingTransformer(host_config("cpu", len(tokenizer)), ablation=SelfAblation(mask="global"))
    model.tokenizer = tokenizer
    return model.eval()


@pytest.fixture(scope="module")
def short_stories(tmp_path_factory):
    texts = [text for text in itertools.islice(stories(3), 40) if len(text.split()) < 75][:6]
    path = tmp_path_factory.mktemp("corpus") / "tales.txt"
    path.write_text("\n<|endoftext|>\n".join(texts) + "\n<|endoftext|>\n")
    return path, texts


def test_losses_equal_a_loop_over_stories(model, short_stories):
    path, texts = short_stories
    found = evaluate.corpus_losses(model, str(path), 10_000)
    sums, count = {"clean": 0.0, "ablated": 0.0}, 0
    for text in texts:
        ids = torch.tensor([[0, *model.tokenizer.encode(text, add_special_tokens=False)]])
        with torch.no_grad():
            out = model(ids, stream="both")
        for stream in sums:
            log_p = getattr(out, stream).log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
            sums[stream] -= log_p.sum().item()
        count += ids.shape[1] - 1
    assert found["n_stories"] == len(texts)
    assert found["n_tokens"] == count
    assert found["n_characters"] == sum(map(len, texts))
    for stream, total in sums.items():
        assert found[f"{stream}_nats_a_token"] == pytest.approx(total / count, abs=2e-4)
        bits = total / math.log(2) / found["n_characters"]
        assert found[f"{stream}_bits_a_character"] == pytest.approx(bits, abs=2e-4)
        low, high = found[f"{stream}_ci"]
        assert low < found[f"{stream}_nats_a_token"] < high


def test_wilsons_interval_by_hand():
    # 8 of 10, z = 2: centre (0.8 + 0.2)/(1.4) = 5/7; half 2 sqrt(0.016 + 0.01)/1.4
    low, high = evaluate.wilson(8, 10, z=2.0)
    assert low == pytest.approx(5 / 7 - 2 * math.sqrt(0.026) / 1.4)
    assert high == pytest.approx(5 / 7 + 2 * math.sqrt(0.026) / 1.4)
    assert evaluate.wilson(0, 10)[0] == 0.0
    assert evaluate.wilson(10, 10)[1] == 1.0


def test_an_untrained_model_is_at_chance_on_ioi(model):
    found = evaluate.ioi_accuracy(model, 200)
    assert found["ioi_n"] == 200
    assert found["clean_ioi_ci"][0] < 0.5 < found["clean_ioi_ci"][1]


def test_ioi_counts_are_those_of_one_pass_over_all_prompts(model):
    task = load_task("ioi", model.tokenizer, n=50, seed=0)
    found = evaluate.ioi_accuracy(model, 50, batch_size=7)
    with torch.no_grad():
        out = model(task.clean, stream="both")
    for stream in ("clean", "ablated"):
        logits = getattr(out, stream)
        right = (task.logit_difference(logits) > 0).sum().item()
        assert 0 < right < 50 and found[f"{stream}_ioi_accuracy"] == right / 50
        assert found[f"{stream}_ioi_top1"] == (task.at_end(logits).argmax(-1) == task.answers).sum().item() / 50


def test_the_interval_is_the_same_however_many_stories_are_drawn_at_once(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    values, counts = torch.rand(30, generator=draw).double(), torch.ones(30).double()
    low, high = evaluate._ratio_interval(values, counts)
    monkeypatch.setattr(evaluate, "DRAWN_AT_ONCE", 100)
    assert evaluate._ratio_interval(values, counts) == (low, high)
    spread = 1.96 * values.std().item() / 30**0.5
    assert high - low == pytest.approx(2 * spread, rel=0.1)


def test_the_command_prints_one_json_object_a_checkpoint(model, short_stories, tmp_path, capsys):
    folder = checkpoint.save(model, tmp_path / "ckpt")
    evaluate.main([str(folder), str(folder), "--corpus", str(short_stories[0]), "--n", "16"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["checkpoint"] for line in lines] == ["ckpt", "ckpt"]
    assert lines[0]["clean_nats_a_token"] == pytest.approx(math.log(4096), abs=0.3)


def test_a_long_story_is_read_in_halves_and_each_token_predicted_once(model, tmp_path):
    from sat_lens.packing import pack

    text = " ".join(itertools.islice(stories(5), 4)).replace("\n", " ")
    packed = pack([text, "Tom ran."], model.tokenizer, tmp_path / "packed")
    ids = [0, *model.tokenizer.encode(text, add_special_tokens=False)]
    rows, counted, story = evaluate.overlapping_rows(packed, 65)
    assert story.tolist() == [0] * (len(story) - 1) + [1]
    n_rows = 1 + math.ceil((len(ids) - 65) / 32)
    assert len(story) == n_rows + 1
    seen = [0]
    for row in range(n_rows):  # row r holds tokens 32 r ... 32 r + 64
        expected = ids[32 * row : 32 * row + 65]
        assert rows[row, : len(expected)].tolist() == expected
        new = [int(t) for t, counts in zip(rows[row, 1:], counted[row], strict=True) if counts]
        seen += new
        if row:  # at least 32 tokens stand before the first token that counts
            assert int(counted[row].nonzero()[0]) >= 32
    assert seen == ids
    assert counted[-1].sum() == len(model.tokenizer.encode("Tom ran.", add_special_tokens=False))
