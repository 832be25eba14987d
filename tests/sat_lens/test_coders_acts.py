"""Latents of stories, kept sparse, against dense tables of the same."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sat_lens.coders import Coder, CoderConfig, LatentActs, collect, neuron_coder, site_batches

LENGTHS = torch.tensor([9, 4, 7, 2, 9])


@pytest.fixture
def collected(tiny_model):
    """A model's latents, sparse and as a dense table [story pos latent] of zeros where tokens do not count."""
    model = tiny_model({"mask": "none"})
    tokens = torch.randint(29, (5, 9), generator=torch.Generator().manual_seed(1))
    coder = Coder(
        CoderConfig("sae", "blocks.1.hook_resid_post", "blocks.1.hook_resid_post", 16, 16, 40, 3), torch.float64
    )
    with torch.no_grad():
        for i, parameter in enumerate(coder.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
        coder.b_enc[:30] = -9.0  # some tokens have fewer than k
    keep = torch.ones(5, 9, dtype=torch.bool)
    keep[:, 0] = False
    acts = collect(model, coder, tokens, LENGTHS, keep=keep, rows=torch.tensor([10, 11, 12, 13, 14]), batch_size=2)
    (batch,) = site_batches(model, coder.cfg, tokens, LENGTHS, keep)
    with torch.no_grad():
        dense = (coder.dense(coder.encode(batch.x)) * batch.keep[..., None]).float()
    return acts, dense, batch.keep


def test_what_is_collected_is_the_dense_table(collected):
    acts, dense, keep = collected
    assert torch.equal(acts.keep, keep) and acts.n_tokens == int(keep.sum())
    assert acts.density == pytest.approx((dense != 0).sum().item() / (acts.n_tokens * 40))
    for units in (None, torch.tensor([7, 3, 39, 30])):
        rows, values, kept = (torch.cat(of) for of in zip(*acts.batches(units, size=2), strict=True))
        assert rows.tolist() == [10, 11, 12, 13, 14] and torch.equal(kept, keep)
        assert torch.equal(values, dense if units is None else dense[..., units])
    assert torch.equal(acts.dense(2), dense[2])


def test_by_latent_is_the_same_turned_round(collected):
    acts, dense, _ = collected
    assert torch.equal(acts.counts, (dense != 0).sum((0, 1)))
    for latent in range(40):
        story, pos, value = acts.of(latent)
        wanted = dense[..., latent].nonzero()
        assert torch.equal(torch.stack([story, pos], 1), wanted)
        assert torch.equal(value, dense[..., latent][dense[..., latent] != 0])
    with pytest.raises(ValueError, match="a latent must be one of 0 to 39; got 40"):
        acts.of(40)


def test_restricted_to_some_stories_in_any_order(collected):
    acts, dense, _ = collected
    part = acts.restricted(torch.tensor([3, 0]))
    assert part.rows.tolist() == [13, 10]
    (batch,) = part.batches()
    assert torch.equal(batch.values, dense[[3, 0]])
    assert torch.equal(part.counts, (dense[[3, 0]] != 0).sum((0, 1)))


def test_six_bytes_a_latent_and_not_much_more(tiny_model):
    model = tiny_model({"mask": "none"})
    coder = Coder(CoderConfig("sae", "blocks.0.hook_resid_pre", "blocks.0.hook_resid_pre", 16, 16, 200, 16))
    with torch.no_grad():
        coder.b_enc.fill_(1.0)  # all are active
    acts = collect(model, coder, torch.zeros(100, 16, dtype=torch.long))
    assert acts.index.dtype == torch.int16 and len(acts.value) == 16 * acts.n_tokens
    assert acts.nbytes < 1.1 * 6 * 16 * acts.n_tokens
    wide = LatentActs(acts.rows, acts.keep, acts.first, acts.index.int(), acts.value, 70_000)
    assert wide.counts.sum() == len(acts.value)


def test_neurons_are_kept_with_their_signs(tiny_model):
    model = tiny_model()
    tokens = torch.randint(29, (3, 9), generator=torch.Generator().manual_seed(1))
    coder = neuron_coder(model, 1, stream="ablated")
    (batch,) = site_batches(model, coder.cfg, tokens)
    (found,) = collect(model, coder, tokens).batches()
    torch.testing.assert_close(found.values, batch.x.float(), rtol=0, atol=0)
    assert (found.values < 0).any()


def test_saved_and_read_again(collected, tmp_path):
    acts, dense, _ = collected
    found = LatentActs.load(acts.save(tmp_path / "acts.safetensors"))
    (batch,) = found.batches()
    assert torch.equal(batch.values, dense) and found.n_latents == 40 and batch.rows.tolist() == acts.rows.tolist()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t | {"index": t["index"].int() + 39}, "a latent beyond n_latents"),
        (lambda t: t | {"first": t["first"].flip(0)}, "do not begin where"),
        (lambda t: t | {"first": t["first"][:-1]}, "do not fit one another"),
        (lambda t: t | {"value": t["value"] / 0}, "not finite"),
        (lambda t: t | {"keep": t["keep"].int()}, "not a readable file"),
        (lambda t: {name: value for name, value in t.items() if name != "rows"}, "not a readable file"),
    ],
)
def test_files_that_lie_are_refused(collected, change, message, tmp_path):
    path = collected[0].save(tmp_path / "acts.safetensors")
    about = '{"format": "sat_lens latents 1", "n_latents": 40}'
    save_file(change(load_file(path)), path, metadata={"latents": about})
    with pytest.raises(ValueError, match=message):
        LatentActs.load(path)


def test_other_files_are_refused(collected, tmp_path):
    path = collected[0].save(tmp_path / "acts.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    for what in (path, tmp_path / "other"):
        (tmp_path / "other").write_text("nothing of the kind")
        with pytest.raises(ValueError, match="not a readable file of latents"):
            LatentActs.load(what)
    save_file({"rows": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a readable file of latents"):
        LatentActs.load(path)
    with pytest.raises(FileNotFoundError):
        LatentActs.load(tmp_path / "nowhere")
