"""generate: greedy text is the model's own argmax, sampling is seeded, streams differ."""

import pytest
import torch

from sat_lens import SelfAblatingTransformer, SelfAblation, checkpoint, generate, load_tokenizer
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


@pytest.mark.parametrize(
    ("flag", "value", "said"), [("--tokens", "0", "at least 1"), ("--temperature", "-1", "at least 0")]
)
def test_impossible_settings_are_refused(flag, value, said):
    with pytest.raises(ValueError, match=said):
        generate.main(["none-s0", flag, value])
