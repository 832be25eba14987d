"""generate: a text is that of whole passes without a cache, rows go together as alone, sampling is seeded."""

import pytest
import torch

from sat_lens import SelfAblatingTransformer, SelfAblation, checkpoint, generate, load_tokenizer
from sat_lens.decoding import window_start
from sat_lens.presets import host_config


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tokenizer = load_tokenizer("stories-4096")
    model = SelfAblatingTransformer(host_config("cpu", len(tokenizer)), ablation=SelfAblation(mask="local"))
    model.tokenizer = tokenizer
    return model.eval()


def test_greedy_text_is_the_argmax_of_each_next_token(model):
    text = generate.generated(model, "Tom and Lily", 3, temperature=0)
    ids = [0, *model.tokenizer.encode("Tom and Lily", add_special_tokens=False)]
    for _ in range(3):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert text == model.tokenizer.decode(ids[1:])


def without_a_cache(model, prompt, n_tokens, temperature, stream, seed):
    """One prompt, one whole pass a token, no cache."""
    ids, draw = list(prompt), torch.Generator().manual_seed(seed)
    for _ in range(n_tokens):
        window = torch.tensor([ids[window_start(len(ids), model.cfg.n_ctx) :]])
        with torch.no_grad():
            logits = model(window, **({} if stream == "clean" else {"stream": stream}))[0, -1]
        probabilities = (logits.float() / temperature).softmax(-1) if temperature else logits
        drawn = torch.multinomial(probabilities, 1, generator=draw) if temperature else logits.argmax()
        ids.append(int(drawn))
    return ids[len(prompt) :]


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("stream", ["clean", "ablated"])
@pytest.mark.parametrize("host", [{}, {"positional_embedding_type": "rotary", "rotary_dim": 4, "n_key_value_heads": 2}])
def test_each_row_of_a_batch_is_what_no_cache_and_no_batch_would_give(tiny_model, host, stream, temperature):
    model = tiny_model(seed=5, **host)
    prompts = [[3], [1, 2, 3, 4, 5, 6], list(range(20)), [28, 0]]  # a context of 16: some windows move, one twice
    found = generate.continuations(model, prompts, 12, temperature=temperature, stream=stream, seed=7)
    for row, prompt in enumerate(prompts):
        assert found[row] == without_a_cache(model, prompt, 12, temperature, stream, seed=7 + row)


def test_a_row_stops_at_the_end_token_and_the_others_go_on(tiny_model):
    model = tiny_model()
    prompts = [[3], [5, 6], [9]]
    free = generate.continuations(model, prompts, 8, temperature=1.5, seed=2)
    end = free[0][3]
    expected = [row[: row.index(end)] if end in row else row for row in free]
    assert generate.continuations(model, prompts, 8, temperature=1.5, seed=2, end=end) == expected
    assert len(expected[0]) < 8 and max(map(len, expected)) == 8


def test_a_prompt_of_no_tokens_is_refused(tiny_model):
    with pytest.raises(ValueError, match="at least 1 token"):
        generate.continuations(tiny_model(), [[1], []], 3)


def test_a_seed_decides_the_sample(model):
    samples = [generate.generated(model, "Once", 8, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert samples[0] == samples[1]
    assert samples[0] != samples[2]


def test_the_ablated_stream_is_another_model(model):
    clean, ablated = (generate.generated(model, "Once", 8, temperature=0, stream=s) for s in ("clean", "ablated"))
    assert clean != ablated


def test_the_window_slides_where_the_context_is_full(model):
    text = generate.generated(model, " the" * 200, 2, temperature=0)
    assert text.startswith(" the the")


def test_the_command_prints_the_prompt_and_more(model, tmp_path, capsys):
    folder = checkpoint.save(model, tmp_path / "ckpt")
    generate.main([str(folder), "--prompt", "Once upon a time", "--tokens", "4"])
    out = capsys.readouterr().out
    assert out.startswith("Once upon a time")
    assert len(out) > len("Once upon a time\n")


def test_several_prompts_are_parted_by_an_empty_line(model, tmp_path, capsys):
    folder = checkpoint.save(model, tmp_path / "ckpt")
    generate.main([str(folder), "--prompt", "Once", "--prompt", "Tom and Lily", "--tokens", "2", "--seed", "3"])
    alone = [generate.generated(model, text, 2, seed=3 + row) for row, text in enumerate(("Once", "Tom and Lily"))]
    assert capsys.readouterr().out == "\n\n".join(alone) + "\n"


@pytest.mark.parametrize(
    ("flag", "value", "said"), [("--tokens", "0", "at least 1"), ("--temperature", "-1", "at least 0")]
)
def test_impossible_settings_are_refused(flag, value, said):
    with pytest.raises(ValueError, match=said):
        generate.main(["none-s0", flag, value])
