"""Readouts, donors, means, fitted constants, selections and results of self-repair, each against another route."""

import copy

import pytest
import torch

from sat_lens.repair import (
    AbsDE,
    All,
    Bottom,
    Dose,
    LogitDiff,
    Mean,
    MinRemoved,
    Optimal,
    Readout,
    Resample,
    TopDE,
    Zero,
    as_components,
    attn_layers,
    heads,
    mlp_layers,
    neurons,
    self_repair,
)
from sat_lens.repair.ablations import site_means
from sat_lens.repair.components import Site, sites_of
from sat_lens.repair.donors import donor_table
from sat_lens.repair.rows import as_rows
from sat_lens.repair.runner import make_runner


def texts(n=5, n_pos=9, seed=3):
    return torch.randint(29, (n, n_pos), generator=torch.Generator().manual_seed(seed))


# Readout


@pytest.mark.parametrize("norm", ["LN", "RMS", None])
def test_the_readout_gives_the_model_s_logits(tiny_model, norm):
    model, tokens = tiny_model(normalization_type=norm), texts()
    logits, cache = model.run_with_cache(tokens)
    final, rows = cache["blocks.1.hook_resid_post"], torch.arange(5)
    for target in ("next_token", "argmax", LogitDiff(3, 5), tokens.flip(1)):
        readout = Readout(model, target)
        assert readout.verify(model, tokens, final) < 1e-10
        ids = readout.targets(rows, tokens, final)
        v = readout.directions(rows, tokens, ids)
        score = (final * v).sum(-1) / readout.norm.scale(final)
        centred = (logits - model.ln_final.b @ model.W_U if norm == "LN" else logits) - model.b_U
        centred = centred - centred.mean(-1, keepdim=True)
        wanted = centred.gather(-1, ids.clamp(min=0)[..., None])[..., 0]
        if isinstance(target, LogitDiff):
            wanted = centred[..., 3] - centred[..., 5]
        torch.testing.assert_close(score[ids >= 0], wanted[ids >= 0])
        if target == "argmax":
            assert torch.equal(ids, logits.argmax(-1))


def test_ids_beyond_the_vocabulary_stay_out_of_the_mean(tiny_model):
    model = tiny_model()
    padded = Readout(model, n_ids=20)
    torch.testing.assert_close(padded.mean, model.W_U[:, :20].mean(1))
    assert not torch.allclose(padded.mean, Readout(model).mean)
    assert Readout(model, center=False).mean.abs().max() == 0


def test_readouts_that_are_not_linear_are_refused(tiny_model):
    model, tokens = tiny_model(), texts()
    final = model.run_with_cache(tokens)[1]["blocks.1.hook_resid_post"]
    with model.hooks(fwd_hooks=[("unembed.hook_out", lambda logits, hook: 5 * (logits / 5).tanh())]):
        with pytest.raises(ValueError, match="the final norm and a linear map"):
            Readout(model).verify(model, tokens, final)
        with pytest.raises(ValueError, match="the final norm and a linear map"):
            self_repair(model, tokens, heads(model), Zero())
    capped = copy.deepcopy(model)
    capped.cfg.output_logits_soft_cap = 30.0
    with pytest.raises(ValueError, match="soft-caps its logits at 30"):
        Readout(capped)
    with pytest.raises(ValueError, match="'next_token', 'argmax'"):
        Readout(model, "nxt")


def test_writes_that_are_not_linear_are_refused(tiny_model):
    """Attention whose output is squashed behind W_O, and a stream that something else writes to."""
    model, tokens = tiny_model(), texts()
    with model.hooks(fwd_hooks=[("blocks.1.hook_attn_out", lambda out, hook: out.tanh())]):
        with pytest.raises(ValueError, match="layer 1 differs"):
            self_repair(model, tokens, heads(model), Zero())
    twice = [("blocks.1.hook_resid_pre", lambda x, hook: 2 * x)]
    with model.hooks(fwd_hooks=twice), pytest.raises(ValueError, match="the shares must sum"):
        self_repair(model, tokens, [(0, 1)], Zero())


# Donors and means


def test_donors_are_other_documents_at_the_same_position():
    lengths = torch.tensor([9, 3, 7, 5, 5, 8, 2, 9])
    documents = torch.tensor([0, 1, 2, 3, 3, 4, 5, 6])
    rows = as_rows(texts(8), lengths, documents=documents)
    tables = [donor_table(rows, seed) for seed in range(5)]
    for table in tables:
        assert ((table >= 0) == rows.real).all()
        row, pos = rows.real.nonzero(as_tuple=True)
        donor = table[row, pos]
        assert (lengths[donor] > pos).all() and (documents[donor] != documents[row]).all()
        changes = (table[:, 1:] != table[:, :-1]) & rows.real[:, 1:]
        ended = lengths[table[:, :-1].clamp(min=0)] <= torch.arange(1, 9)
        assert (changes == (ended & rows.real[:, 1:])).all(), "a donor stays for as long as it lasts"
    assert len({tuple(table[:, 0].tolist()) for table in tables}) > 1


def test_rows_that_reach_a_position_replace_one_another_in_one_cycle():
    rows = as_rows(texts(6), torch.tensor([9, 9, 4, 6, 9, 6]))
    table = donor_table(rows)
    for pos, reach in ((0, 6), (4, 5), (7, 3)):
        place, met = 0, set()
        while place not in met:
            met.add(place)
            place = int(table[place, pos])
        assert place == 0 and len(met) == reach


def test_the_end_of_the_longest_text_has_no_donor_and_is_not_measured(tiny_model):
    lengths = torch.tensor([9, 6, 6])
    rows = as_rows(texts(3), lengths)
    assert (donor_table(rows)[0] < 0).tolist() == [False] * 6 + [True] * 3
    model = tiny_model()
    found = self_repair(model, texts(3), [(0, 1)], Resample(), lengths=lengths, select=All()).per_component()
    assert found.n_tokens[0] == 5 + 4 + 4
    with pytest.raises(ValueError, match="at least 2 documents"):
        donor_table(as_rows(texts(3), documents=torch.zeros(3, dtype=torch.long)))


def test_resampling_is_the_given_source_of_the_donors_and_draws_are_averaged(tiny_model):
    model, tokens = tiny_model(), texts()
    rows = as_rows(tokens)
    sources = [tokens[donor_table(rows, seed)[:, 0]] for seed in (4, 5)]
    one, other = (
        self_repair(model, tokens, heads(model), Resample(source=source), select=All()).sums for source in sources
    )
    both = self_repair(model, tokens, heads(model), Resample(n=2, seed=4), select=All()).sums
    torch.testing.assert_close(both, (one + other) / 2)
    assert not torch.allclose(one, other)


def test_means_are_those_of_a_cache_without_padding_and_first_tokens(tiny_model):
    model, tokens = tiny_model(), texts()
    lengths = torch.tensor([9, 4, 7, 9, 2])
    rows = as_rows(tokens, lengths)
    _, cache = model.run_with_cache(tokens)
    sites = [Site(1, "z"), Site(0, "mlp_out"), Site(1, "post")]
    whole = site_means(make_runner(model), rows, sites, 2, False, True)
    by_position = site_means(make_runner(model), rows, sites, 2, True, True)
    real = rows.real & (torch.arange(9) > 0)
    for site in sites:
        torch.testing.assert_close(whole[site], cache[site.hook][real].mean(0))
        torch.testing.assert_close(by_position[site][6], cache[site.hook][real[:, 6], 6].mean(0))
        assert by_position[site][0].abs().max() == 0


@pytest.mark.parametrize("ablation", [Mean(), Mean("position")])
def test_means_leave_first_tokens_alone(tiny_model, ablation):
    model, tokens = tiny_model(), texts()
    found = self_repair(model, tokens, heads(model), ablation, select=All(), skip_bos=False).per_token("L0H1")
    first = found[found.pos == 0]
    assert first.dlogit.abs().max() < 1e-7 and found[found.pos > 0].dlogit.abs().min() > 1e-6


def test_fitted_constants_hurt_less_than_means_and_zeros(tiny_model):
    model, tokens = tiny_model(), texts(12)
    ablation = Optimal(steps=120, lr=0.1, batch=24)
    chosen = as_components(model, [(0, 1), (1, 2), *mlp_layers(model, [1])])
    rows, runner = as_rows(tokens), make_runner(model)
    start = site_means(runner, rows, sites_of(chosen), 4, False, True)
    with runner.ready():
        clean = runner.clean(tokens, sites_of(chosen))
    fitted = ablation.fitted(runner, rows, chosen, 4)(torch.arange(12), clean, 0)
    for component in chosen:
        (site, units), nats = component.writes[0], {}
        for name, values in (("fitted", fitted[site]), ("mean", start[site].expand_as(fitted[site])), ("zero", 0)):

            def swap(value, hook, site=site, units=units, values=values):
                changed = value.clone()
                where = (slice(None), slice(1, None)) + ((list(units),) if site.name == "z" else ())
                changed[where] = values[where] if isinstance(values, torch.Tensor) else 0.0
                return changed

            with torch.no_grad():
                nats[name] = model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(site.hook, swap)]).item()
        assert nats["fitted"] < nats["mean"] and nats["fitted"] < nats["zero"], component.name


# Selections


def test_selections_choose_what_they_say(tiny_model):
    model, tokens = tiny_model(), texts()
    knobs = {"lengths": torch.tensor([9, 4, 7, 9, 8])}
    every = self_repair(model, tokens, heads(model), Resample(), select=All(), **knobs)
    n = every.meta["n_kept_tokens"]
    assert n == 7 + 2 + 5 + 7 + 6
    name = "L0H2"
    table = every.per_token(name)
    by_hand = {
        TopDE(0.2): table.nlargest(int(0.2 * n), "de"),
        TopDE(0.2, signed=False): table.iloc[table.de.abs().argsort()[::-1][: int(0.2 * n)]],
        TopDE(0.001): table.nlargest(1, "de"),
        Bottom(0.2): table.nsmallest(int(0.2 * n), "de"),
        AbsDE(0.2): table[table.de.abs() > 0.2],
        MinRemoved(0.2): table[(table.de - table.ade).abs() > 0.2],
    }
    for select, wanted in by_hand.items():
        for batch_size in (2, 16):
            mine = self_repair(
                model, tokens, heads(model), Resample(), select=select, batch_size=batch_size, **knobs
            ).per_token(name)
            assert set(zip(mine.seq, mine.pos, strict=True)) == set(zip(wanted.seq, wanted.pos, strict=True)), (
                select.name
            )
            assert mine.self_repair.mean() == pytest.approx(wanted.self_repair.mean(), abs=1e-6)
    assert self_repair(model, tokens, heads(model), Resample(), **knobs).meta["selection"].startswith("top 2 %")


def test_kept_tokens_and_given_targets_bound_what_is_measured(tiny_model):
    model, tokens = tiny_model(), texts()
    keep = torch.zeros(5, 9, dtype=torch.bool)
    keep[1, 3] = keep[2, 8] = keep[3, 0] = True
    knobs = {"select": All(), "keep": keep}
    found = self_repair(model, tokens, [(0, 0)], Zero(), **knobs).per_token("L0H0")
    assert found[["seq", "pos"]].to_numpy().tolist() == [[1, 3]]  # [2, 8] has no next token, [3, 0] is the first
    assert found.token[0] == tokens[1, 3] and found.target[0] == tokens[1, 4]
    ids = torch.full((5, 9), -1)
    ids[2, 8], ids[1, 4] = 7, 8
    found = self_repair(model, tokens, [(0, 0)], Zero(), target=ids, **knobs).per_token("L0H0")
    assert found[["seq", "pos", "target"]].to_numpy().tolist() == [[2, 8, 7]]
    with pytest.raises(ValueError, match="at least 1 token"):
        self_repair(model, tokens, [(0, 0)], Zero(), keep=torch.zeros(5, 9, dtype=torch.bool))


# Components and other arguments


def test_components_have_names_and_are_checked(tiny_model):
    model = tiny_model()
    assert [one.name for one in (*attn_layers(model), *mlp_layers(model))] == ["attn0", "attn1", "mlp0", "mlp1"]
    found = as_components(model, [(1, 2), {(0, 1), (1, 3)}, *neurons(model, 1, [4])])
    assert [one.name for one in found] == ["L1H2", "L0H1+L1H3", "L1N4"]
    assert (found[0].layer, found[0].head, found[1].head, found[2].unit) == (1, 2, None, 4)
    for given, message in (
        ([], "at least 1 component"),
        ([(2, 0)], "between 0 and 1; got 2"),
        ([(0, 4)], "has 4 units"),
        ([(0, 1), (0, 1)], "more than once"),
        ([[*mlp_layers(model), *neurons(model, 0, [1])]], "not both"),
    ):
        with pytest.raises(ValueError, match=message):
            as_components(model, given)
    with pytest.raises(ValueError, match="attention only"):
        mlp_layers(tiny_model(attn_only=True, d_mlp=None))


def test_bad_arguments_say_what_was_expected(tiny_model):
    model, tokens = tiny_model(), texts()
    for knobs, message in (
        ({"ln_order": "paper"}, "clean, ablated, symmetric"),
        ({"downstream": "layers"}, "none, components, neurons"),
        ({"batch_size": 0}, "batch_size"),
        ({"head_chunk": "many"}, "head_chunk"),
        ({"lengths": torch.tensor([9, 9, 9, 9, 10])}, "between 1 and 9"),
    ):
        with pytest.raises(ValueError, match=message):
            self_repair(model, tokens, heads(model), Zero(), **knobs)
    for make in (lambda: TopDE(0), lambda: Mean("batch"), lambda: Resample(0), lambda: Dose(Zero(), (1, 1))):
        with pytest.raises(ValueError):
            make()
    with pytest.raises(ValueError, match="float32 or float64"):
        make_runner(model.to_hooked_transformer().to(torch.bfloat16))
    with pytest.raises(ValueError, match="knows the stream 'clean'"):
        make_runner(model, stream="ablated")


def test_what_does_not_fit_is_refused_before_the_run(tiny_model, monkeypatch):
    model = tiny_model()
    monkeypatch.setattr("sat_lens.memory.available_bytes", lambda device: 10_000)
    with pytest.raises(ValueError, match="a batch and a chunk needs about"):
        self_repair(model, texts(), heads(model), Zero())


# Results
