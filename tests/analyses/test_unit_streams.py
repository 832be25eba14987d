"""Values of units: against TransformerLens' own cache, for every kind, stream and architecture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from analyses.texts import Stories
from analyses.unit_streams import KINDS, real_tokens, unit_batches, units_of
from sat_lens._tl import hooked_transformer
from tests.cases.architectures import HOSTS


def stories_of(n: int = 5, longest: int = 9) -> Stories:
    tokens = torch.randint(1, 29, (n, longest), generator=torch.Generator().manual_seed(3))
    lengths = torch.tensor([longest, *range(3, n + 2)])
    return Stories(tokens.masked_fill(torch.arange(longest) >= lengths[:, None], 0), lengths)


def whole(model: Any, stories: Stories, units: Any, batch: int = 2, **knobs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and kept tokens of all stories, padded to one width."""
    width = stories.tokens.shape[1]
    parts = list(unit_batches(model, stories, units, batch, **knobs))
    values = [torch.nn.functional.pad(p.values, (0, 0, 0, width - p.values.shape[1])) for p in parts]
    keep = [torch.nn.functional.pad(p.keep, (0, width - p.keep.shape[1])) for p in parts]
    assert torch.cat([p.rows for p in parts]).tolist() == list(range(stories.n))
    return torch.cat(values), torch.cat(keep)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("stream", ["clean", "ablated"])
def test_values_are_those_of_the_cache_in_every_architecture(tiny_model: Callable[..., Any], host: str, stream: str):
    model, stories = tiny_model(**HOSTS[host]), stories_of()
    _, cache = model.run_with_cache(stories.tokens, stream="both")
    gated = "" if stream == "clean" else "gated_"
    for kind in KINDS:
        if kind.endswith("neuron") and model.cfg.attn_only:
            with pytest.raises(ValueError, match="attention only"):
                units_of(model, kind, stream)
            continue
        units = units_of(model, kind, stream)
        expected = []
        for layer in range(model.cfg.n_layers):
            z = cache[f"blocks.{layer}.attn.hook_{gated}z"]
            if kind == "neuron":
                expected.append(cache[f"blocks.{layer}.mlp.hook_{gated}post"])
            elif kind == "channel":
                expected.append(z.flatten(2))
            elif kind == "head":
                written = torch.einsum("bphc,hcd->bphd", z, model.blocks[layer].attn.W_O)
                expected.append(written.norm(dim=-1))
            else:
                expected.append(
                    cache[f"blocks.{layer}.{'mlp' if kind == 'mask_neuron' else 'attn'}.hook_mask"].flatten(2)
                )
        values, keep = whole(model, stories, units)
        found, right = values[keep], torch.cat(expected, -1)[keep]
        assert found.shape == (int(stories.lengths.sum()), units.n)  # no tokenizer: nothing begins a text
        torch.testing.assert_close(found, right.detach().to(found.dtype), rtol=1e-10, atol=1e-10)


def test_a_plain_hooked_transformer_has_the_same_units(tiny_model: Callable[..., Any]):
    model, stories = tiny_model(), stories_of()
    plain = model.to_hooked_transformer()
    for kind in ("neuron", "channel", "head"):
        ours, theirs = (whole(m, stories, units_of(m, kind))[0] for m in (model, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="no ablated stream"):
        units_of(plain, "neuron", "ablated")
    with pytest.raises(ValueError, match="no masks"):
        units_of(plain, "mask_neuron")


def test_gates_multiply_to_the_values(tiny_model: Callable[..., Any]):
    model, stories = tiny_model(), stories_of()
    for kind in ("neuron", "channel"):
        for part in unit_batches(model, stories, units_of(model, kind, "ablated"), gates=True):
            assert torch.equal(part.ungated * part.masks, part.values)
            assert part.masks.sum(-1)[part.keep].eq(2 * (5 if kind == "neuron" else 3)).all()  # k in each of 2 layers
    with pytest.raises(ValueError, match="gated"):
        unit_batches(model, stories, units_of(model, "neuron"), gates=True)


def test_masks_of_heads_are_one_unit_a_head(tiny_model: Callable[..., Any]):
    model, stories = tiny_model(ablation={"unit": "head", "k_attn": 2}), stories_of()
    units = units_of(model, "mask_channel")
    assert units.stream == "ablated" and units.n == 8 and units.table.unit.iloc[-1] == "L1.M3"
    values, keep = whole(model, stories, units)
    assert values[keep].sum(-1).eq(4).all()


def test_padding_and_the_beginning_of_text_are_left_out(tiny_model: Callable[..., Any], tiny_tokenizer: Any):
    model, stories = tiny_model(), stories_of()
    model.tokenizer = tiny_tokenizer
    tokens = stories.tokens.clone()
    tokens[:3, 0] = tiny_tokenizer.bos_token_id
    keep = real_tokens(model, Stories(tokens, stories.lengths))
    assert keep[:, 0].tolist() == [False] * 3 + [True] * 2  # the last two rows begin with a word
    assert keep.sum().item() == stories.lengths.sum().item() - 3
    assert not keep[1, int(stories.lengths[1]) :].any()


def test_some_layers_and_some_rows_are_the_same_numbers(tiny_model: Callable[..., Any]):
    model, stories = tiny_model(), stories_of()
    every, _ = whole(model, stories, units_of(model, "neuron"), batch=5)
    units = units_of(model, "neuron", layers=[1])
    parts = list(unit_batches(model, stories, units, rows=[1, 4]))
    assert units.table.unit.iloc[0] == "L1.N0" and parts[0].rows.tolist() == [1, 4]
    torch.testing.assert_close(parts[0].values, every[[1, 4], : parts[0].values.shape[1], 24:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"kind": "neurons"}, "neuron, channel, head, mask_neuron, mask_channel; got 'neurons'"),
        ({"kind": "neuron", "stream": "both"}, "clean, ablated; got 'both'"),
        ({"kind": "head", "layers": [0, 2]}, "some of 0 to 1"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_right_names(
    tiny_model: Callable[..., Any], knobs: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        units_of(tiny_model(), **knobs)


def test_no_hook_is_left_when_reading_stops_early(tiny_config: Callable[..., Any]):
    model = hooked_transformer(tiny_config())
    next(unit_batches(model, stories_of(), units_of(model, "channel"), 1))
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
