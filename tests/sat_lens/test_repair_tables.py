"""Tables of self-repair: what the tokens give, intervals over texts, zones, files, several processes."""

import numpy as np
import pytest
import torch

from sat_lens.repair import (
    All,
    Dose,
    Mean,
    Resample,
    SelfRepairResult,
    TopDE,
    Zero,
    heads,
    joint,
    self_repair,
)
from sat_lens.repair.effects import zone
from sat_lens.repair.runner import Point, make_runner


def texts(n=5, n_pos=9, seed=3):
    return torch.randint(29, (n, n_pos), generator=torch.Generator().manual_seed(seed))


def test_tables_are_what_the_tokens_give(tiny_model):
    model = tiny_model()
    result = self_repair(model, texts(), heads(model), Resample(), select=All())
    found = result.per_component().set_index("component")
    for name in ("L0H1", "L1H3"):
        table = result.per_token(name)
        row = found.loc[name]
        for column in ("de", "ade", "dlogit", "self_repair", "sr_ln", "scale_ratio"):
            assert row[column] == pytest.approx(table[column].mean(), abs=1e-6)
        assert row.removed == pytest.approx((table.de - table.ade).mean(), abs=1e-6)
        assert row.sr_std == pytest.approx(table.self_repair.std(ddof=0), abs=1e-6)
        assert row.frac_of_removed == pytest.approx(table.self_repair.sum() / (table.de - table.ade).sum(), rel=1e-4)
        assert row.ln_frac == pytest.approx(table.sr_ln.sum() / table.de.sum(), rel=1e-4)
        assert row.ln_frac_clipped == pytest.approx((table.sr_ln / table.de).clip(0, 1).mean(), abs=1e-6)
        assert row.ln_frac_median == pytest.approx((table.sr_ln / table.de).median(), abs=1e-6)
        assert row.ci_low < row.self_repair < row.ci_high
        assert table.s1.to_numpy() == pytest.approx((table.s0 / table.scale_ratio).to_numpy())
    layers = result.layer_summary()
    assert layers.self_repair.to_numpy() == pytest.approx(found.groupby("layer").self_repair.mean().to_numpy())
    assert layers.n_components.tolist() == [4, 4]


def test_intervals_are_of_the_ratio_of_sums_over_texts(tiny_model):
    """By hand: draw texts with replacement, sum up, divide."""
    model = tiny_model()
    result = self_repair(model, texts(6), [(1, 1)], Resample(), lengths=torch.tensor([9, 3, 9, 4, 6, 9]), select=All())
    table, draw = result.per_token("L1H1"), np.random.default_rng(1)
    by_text = table.groupby("seq").self_repair.agg(["sum", "size"]).to_numpy()
    picked = by_text[draw.integers(len(by_text), size=(20000, len(by_text)))].sum(1)
    low, high = np.quantile(picked[:, 0] / picked[:, 1], [0.025, 0.975])
    row = result.per_component().iloc[0]
    assert (row.ci_low, row.ci_high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_zones():
    assert [zone(d, 2.0) for d in (-1.0, -3.0, 0.5)] == ["repaired", "breakage", "over-repaired"]
    assert [zone(-d, -2.0) for d in (-1.0, -3.0, 0.5)] == ["repaired", "breakage", "over-repaired"]
    assert zone(1.0, 0.0) == "none"


def test_results_are_written_read_and_compared(tiny_model, tmp_path):
    model, tokens = tiny_model(), texts()
    chosen = [*heads(model, [1]), joint([(0, 1), (1, 2)])]
    knobs = {"select": TopDE(0.3), "downstream": "components"}
    one = self_repair(model, tokens, chosen, Dose(Mean(), (0.5, 1.0)), **knobs)
    one.save(tmp_path / "one")
    assert {path.suffix for path in (tmp_path / "one").iterdir()} == {".json", ".safetensors"}
    read = SelfRepairResult.load(tmp_path / "one")
    assert read.per_component().equals(one.per_component()) and read.repair_matrix().equals(one.repair_matrix())
    assert read.per_token("L1H2", 0.5).equals(one.per_token("L1H2", 0.5)) and read.components == one.components
    assert one.compare(read).difference.abs().max() == 0
    other = self_repair(model, tokens, chosen, Dose(Zero(), (0.5, 1.0)), **knobs)
    found = one.compare(other)
    wanted = one.per_component().self_repair - other.per_component().self_repair
    mine = found[found.measure == "self_repair"].difference.to_numpy()
    assert mine == pytest.approx(wanted.to_numpy())
    assert (found.ci_low <= found.ci_high).all()
    with pytest.raises(ValueError, match="these differ"):
        one.compare(self_repair(model, texts(seed=4), chosen, Dose(Zero(), (0.5, 1.0)), **knobs))


def test_without_tokens_medians_are_missing_and_all_else_is_the_same(tiny_model):
    model, tokens = tiny_model(), texts()
    with_them, without = (
        self_repair(model, tokens, heads(model), Resample(), per_token=kept) for kept in (True, False)
    )
    assert torch.equal(with_them.sums, without.sums)
    assert without.per_component().ln_frac_median.isna().all()
    with pytest.raises(ValueError, match="not kept"):
        without.per_token("L0H1")
    with pytest.raises(ValueError, match="kept apart"):
        without.repair_matrix()


def test_several_processes_give_what_one_gives(tiny_model, ranks):
    model, tokens = tiny_model(), texts(7)
    knobs = {"lengths": torch.tensor([9, 4, 7, 9, 8, 6, 9]), "batch_size": 2, "downstream": "components"}

    def measured(rank):
        results = [
            self_repair(model, tokens, heads(model), ablation, select=select, **knobs)
            for ablation, select in ((Resample(), TopDE(0.3)), (Mean("position"), All()))
        ]
        return [[result.sums, result.matrix, result.places] for result in results]

    alone = measured(0)
    for shared in ranks(3, measured):
        for mine, its in zip(alone, shared, strict=True):
            torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("name", ["hook_resid_mid", "ln1.hook_scale", "ln2.hook_normalized", "mlp.hook_post"])
def test_a_suffix_is_felt_by_hooks_wherever_they_sit(tiny_model, name):
    model = tiny_model().to_hooked_transformer()
    tokens = torch.randint(model.cfg.d_vocab, (3, 7), generator=torch.Generator().manual_seed(0))
    hook = (f"blocks.1.{name}", lambda value: 0.5 * value)
    runner, start = make_runner(model), Point(1)
    with runner.ready():
        clean = runner.clean(tokens, [], [start])
        found = runner.suffix(clean, start, clean.streams[start], torch.arange(3), [hook])
    expected = model.run_with_hooks(
        tokens,
        return_type=None,
        stop_at_layer=model.cfg.n_layers,
        fwd_hooks=[(hook[0], lambda value, hook: 0.5 * value)],
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(expected, model(tokens, return_type=None, stop_at_layer=model.cfg.n_layers))
