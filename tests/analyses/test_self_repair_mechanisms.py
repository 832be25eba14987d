"""The studies against the definitions, by TransformerLens hooks on whole forward passes of tiny random models."""

import numpy as np
import pytest
import torch
from scipy.stats import linregress
from sklearn.metrics import roc_auc_score

from analyses.result import Result
from analyses.self_repair.mechanisms import STUDIES, noise, study_figures
from analyses.self_repair.mechanisms.backups import area, fisher_energy
from analyses.self_repair.mechanisms.estimates import line, moments
from analyses.self_repair.mechanisms.hydra import _donors
from analyses.self_repair.mechanisms.overlap import identity_overlap, overlap_by_chance
from analyses.self_repair.mechanisms.scene import Scene
from analyses.texts import Stories
from sat_lens.repair import All, Zero, heads, self_repair
from tests.cases.architectures import HOSTS

EXACT = {"rtol": 1e-7, "atol": 1e-9}
ALL = {"ablation": Zero(), "select": All()}


def texts(n=5, n_pos=7):
    tokens = torch.randint(29, (n, n_pos), generator=torch.Generator().manual_seed(3))
    return Stories(tokens, torch.tensor([n_pos, 4, n_pos, 5, 6][:n]))


def measured(stories):
    keep = stories.predicted.clone()
    keep[:, 0] = False
    return keep


def scores(model, x, stories):
    """Centred target logit times the scale of the last norm, and that scale, at every token but the last."""
    gain = model.ln_final.w
    v = (model.W_U - model.W_U.mean(1, keepdim=True)).T[stories.tokens[:, 1:]] * gain
    c = x - x.mean(-1, keepdim=True)
    return (c[:, :-1] * v).sum(-1), (x.var(-1, correction=0) + model.cfg.eps).sqrt()[:, :-1]


def cached(model, stories, hooks=()):
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        return model.run_with_cache(stories.tokens)[1]


def zeroing(layer, head):
    def hook(z, hook):
        z = z.clone()
        z[:, :, head] = 0
        return z

    return f"blocks.{layer}.attn.hook_z", hook


def holding(cache, name, units=slice(None)):
    def hook(value, hook):
        value = value.clone()
        value[:, :, units] = cache[name][:, :, units]
        return value

    return name, hook


def by_hand(model, stories, hooks, own):
    """Mean self-repair of a run: change of the logit at each kept token, less that of the direct effect `own`."""
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    clean, run = cached(model, stories), cached(model, stories, hooks)
    (f0, s0), (f1, s1) = scores(model, clean[last], stories), scores(model, run[last], stories)
    return (f1 / s1 - f0 / s0 - own)[measured(stories)[:, :-1]].mean().item()


def own_change(model, stories, clean, layer, head):
    out = -clean[f"blocks.{layer}.attn.hook_z"][:, :, head] @ model.blocks[layer].attn.W_O[head]
    last = clean[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
    return scores(model, out, stories)[0] / scores(model, last, stories)[1]


def value(result, measure, column="value", **index):
    table = result.table[result.table.measure == measure]
    for name, wanted in index.items():
        table = table[table[name] == wanted]
    assert len(table) == 1
    return float(table[column].iloc[0])


@pytest.fixture
def model(tiny_model):
    return tiny_model(ablation={"mask": "none"}, n_layers=2)


def test_freezing_by_hand(model):
    stories = texts()
    clean = cached(model, stories)
    result = STUDIES["mediation"][0](model, stories, component=(0, 1), sets={"two": [(1, 0), (1, 3)]}, **ALL)
    own, out = own_change(model, stories, clean, 0, 1), zeroing(0, 1)
    live = by_hand(model, stories, [out], own)
    assert value(result, "repair") == pytest.approx(live, abs=1e-9)
    z = ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]
    frozen = {
        "heads": [holding(clean, z[1])],
        "mlps": [holding(clean, f"blocks.{layer}.hook_mlp_out") for layer in (0, 1)],
        "two": [holding(clean, z[1], [0, 3])],
    }
    for part, hooks in frozen.items():
        left = by_hand(model, stories, [out, *hooks], own)
        assert value(result, "blocked", part=part) == pytest.approx(live - left, abs=1e-9)
        assert abs(live - left) > 1e-6
    assert value(result, "share", part="all") == pytest.approx(1, abs=1e-9), "nothing left to repair"
    carried = STUDIES["share_of_repair"][0](model, stories, component=(0, 1), carriers=[(1, 0), (1, 3)], **ALL)
    assert value(carried, "freeze") == pytest.approx(value(result, "blocked", part="two"), abs=1e-9)


@pytest.mark.parametrize("host", list(HOSTS))
def test_nothing_repairs_when_all_is_frozen(host, tiny_model):
    model = tiny_model(ablation={"mask": "none"}, n_layers=2, **HOSTS[host])
    result = STUDIES["mediation"][0](model, texts(), component=(0, 1), **ALL)
    assert abs(value(result, "repair")) > 1e-3
    for column in ("value", "null"):
        left = value(result, "repair", column) - value(result, "blocked", column, part="all")
        assert left == pytest.approx(0, abs=1e-9)
    if model.cfg.normalization_type is None:
        assert value(result, "blocked", part="ln") == pytest.approx(0, abs=1e-12), "no norm, no share of it"


def test_neurons_by_hand(model):
    stories = texts()
    clean, run = cached(model, stories), cached(model, stories, [zeroing(1, 2)])
    result = STUDIES["erasure"][0](model, stories, component=(1, 2), top=3, freeze=(24,), **ALL)
    keep, name = measured(stories)[:, :-1], "blocks.1.mlp.hook_post"
    _, s0 = scores(model, clean["blocks.1.hook_resid_post"], stories)
    de = {}
    for kind, cache in (("de_clean", clean), ("de_abl", run)):
        each = [scores(model, cache[name][..., n, None] * model.blocks[1].mlp.W_out[n], stories)[0] for n in range(24)]
        de[kind] = (torch.stack(each, -1) / s0[..., None])[keep].detach().numpy()
        found = result.table[result.table.measure == kind].sort_values("neuron").value
        np.testing.assert_allclose(found, de[kind].mean(0), **EXACT)
    repair = de["de_abl"] - de["de_clean"]
    anti = (de["de_clean"] < 0) & (repair > 0)
    assert value(result, "class_repair", **{"class": "anti_erasure"}) == pytest.approx((repair * anti).sum(1).mean())
    positive = np.clip(repair, 0, None)
    assert value(result, "top_share") == pytest.approx((positive.max(1) / positive.sum(1)).mean())
    head = own_change(model, stories, clean, 1, 2)[keep].detach().numpy() * -1
    third = np.sort(repair, 1)[:, -3]
    assert value(result, "threshold", rank=3, p=0.05) == pytest.approx((third > 0.05 * head).mean())
    live = by_hand(model, stories, [zeroing(1, 2)], own_change(model, stories, clean, 1, 2))
    left = by_hand(model, stories, [zeroing(1, 2), holding(clean, name)], own_change(model, stories, clean, 1, 2))
    assert value(result, "frozen", set="top 24") == pytest.approx(live - left, abs=1e-9), "the whole layer"
    assert value(result, "frozen", "null", set="top 24") == pytest.approx(live - left, abs=1e-9)


def test_the_matrix_is_the_cores_and_the_dose_is_too(model):
    stories = texts()
    kept = {"lengths": stories.lengths, "select": All(), "downstream": "components"}
    core = self_repair(model, stories.tokens, heads(model), Zero(), **kept).repair_matrix()
    result = STUDIES["repair_matrix"][0](model, stories, batch_size=2, **ALL)
    table = result.table[result.table.measure == "repair"]
    for ablated, rows in table.groupby("ablated"):
        np.testing.assert_allclose(rows.set_index("repairing").value[list(core)], core.loc[ablated], **EXACT)
    row = np.clip(core.loc["L0H0"], 0, None)
    assert value(result, "participation", ablated="L0H0") == pytest.approx(row.sum() ** 2 / (row**2).sum())
    doses = STUDIES["dose"][0](model, stories, component=(0, 0), lambdas=(0.5, 1), **ALL).table
    whole = doses[(doses.measure == "response") & (doses["lambda"] == 1)].set_index("receiver").value
    np.testing.assert_allclose(whole[["L1H0", "mlp0", "mlp1"]], core.loc["L0H0", ["L1H0", "mlp0", "mlp1"]], **EXACT)


def test_hydra_by_hand(model):
    """One story's last token, one donor: the run with the other story's attention output in its place."""
    stories, seed = texts(2), 5
    result = STUDIES["hydra"][0](model, stories, draws=1, seed=seed)
    assert _donors(2, 1, seed).tolist() == [[1], [0]]
    clean, name = cached(model, stories), "blocks.0.hook_attn_out"
    last = stories.lengths - 1
    outs = clean[name][torch.arange(2), last]

    def swap(value, hook):
        value = value.clone()
        value[torch.arange(2), last] = outs[[1, 0]]
        return value

    run, final = cached(model, stories, [(name, swap)]), "blocks.1.hook_resid_post"
    with torch.no_grad():
        target = model(stories.tokens)[torch.arange(2), last].argmax(-1)
    v = (model.W_U - model.W_U.mean(1, keepdim=True)).T[target] * model.ln_final.w

    def score(x):
        return ((x - x.mean(-1, keepdim=True)) * v).sum(-1)

    x0, x1 = (cache[final][torch.arange(2), last] for cache in (clean, run))
    s0 = (x0.var(-1, correction=0) + model.cfg.eps).sqrt()
    de, te = score(outs - outs[[1, 0]]) / s0, score(x0 - x1) / s0
    table = result.table[(result.table.layer == 0) & (result.table.kind == "attn") & (result.table.story >= 0)]
    for measure, expected in (("story_de", de), ("story_ce", de - te)):
        found = table[table.measure == measure].sort_values("story").value
        np.testing.assert_allclose(found, expected.detach(), **EXACT)


def test_self_repression_by_hand(model):
    """One token at a time: the head's output is added before its layer, the norm's scale as before."""
    stories, layer, head = texts(2), 1, 2
    result = STUDIES["self_repression"][0](model, stories, component=(layer, head), times=(3,), **ALL)
    clean, keep = cached(model, stories), measured(stories)
    w = model.blocks[layer].attn.W_O[head]
    out = clean[f"blocks.{layer}.attn.hook_z"][:, :, head] @ w
    s0 = scores(model, clean["blocks.1.hook_resid_post"], stories)[1]
    old, new = [], []
    for row, pos in keep.nonzero().tolist():

        def add(value, hook, row=row, pos=pos):
            value = value.clone()
            value[row, pos] += 3 * out[row, pos]
            return value

        hooks = [(f"blocks.{layer}.hook_resid_pre", add), holding(clean, f"blocks.{layer}.ln1.hook_scale")]
        z = cached(model, stories, hooks)[f"blocks.{layer}.attn.hook_z"][:, :, head]
        old.append((scores(model, out, stories)[0] / s0)[row, pos].item())
        new.append((scores(model, z @ w, stories)[0] / s0)[row, pos].item())
    old, new = np.array(old), np.array(new)
    assert value(result, "new", added="own") == pytest.approx(new.mean(), abs=1e-9)
    assert value(result, "slope", added="own") == pytest.approx((old * new).sum() / (old**2).sum(), abs=1e-9)
    assert value(result, "line_slope", added="own") == pytest.approx(linregress(old, new).slope, abs=1e-9)
    assert abs(new - old).max() > 1e-4


def test_layer_shift_by_hand(model):
    stories = texts(3)
    result = STUDIES["layer_shift"][0](model, stories, **ALL)
    clean, keep = cached(model, stories), measured(stories)[:, :-1]
    s0 = scores(model, clean["blocks.1.hook_resid_post"], stories)[1]
    skip = ("blocks.1.hook_resid_pre", lambda value, hook: clean["blocks.0.hook_resid_pre"])
    run = cached(model, stories, [skip, holding(clean, "blocks.1.ln1.hook_scale")])
    for head in range(4):
        change = (run["blocks.1.attn.hook_z"] - clean["blocks.1.attn.hook_z"])[:, :, head]
        expected = scores(model, change @ model.blocks[1].attn.W_O[head], stories)[0] / s0
        assert value(result, "shift", head=head) == pytest.approx(expected[keep].mean().item(), abs=1e-9)


def test_completion_by_hand(model):
    stories = texts(3)
    keep = measured(stories)
    result = STUDIES["backups"][0](model, stories, seeds=[(0, 0)], labels=[(1, 1), (1, 2)], **ALL)
    runs = {"": [], "s": [zeroing(0, 0)], "u": [zeroing(1, 1)], "su": [zeroing(0, 0), zeroing(1, 1)]}
    with torch.no_grad():
        logits = {name: model.run_with_hooks(stories.tokens, fwd_hooks=hooks)[keep] for name, hooks in runs.items()}
    p = logits[""].softmax(-1)
    metric = torch.diag_embed(p) - p[:, :, None] * p[:, None]

    def energy(d):
        return torch.einsum("ti,tij,tj->t", d, metric, d).mean().item()

    without, within = energy(logits["su"] - logits["s"]), energy(logits["u"] - logits[""])
    assert value(result, "completion", head="L1H1") == pytest.approx(without - within, abs=1e-10)
    assert value(result, "energy", head="L1H1") == pytest.approx(within, abs=1e-10)
    table = result.table[result.table.measure == "completion"]
    assert value(result, "auc", score="completion") == pytest.approx(roc_auc_score(table.backup == "yes", table.value))


def test_projection_by_hand(model):
    stories = texts(3)
    keep = measured(stories)
    result = STUDIES["erasure_projection"][0](model, stories)
    clean = cached(model, stories)
    early = (clean["blocks.0.attn.hook_z"][:, :, 2] @ model.blocks[0].attn.W_O[2])[keep]
    later = clean["blocks.1.hook_mlp_out"][keep]
    early, later = (x - x.mean(-1, keepdim=True) for x in (early, later))
    expected = ((early * later).sum() / (early**2).sum()).item()
    assert value(result, "ratio", early="L0H2", later="mlp1") == pytest.approx(expected)


def test_overlap_of_random_sets_is_that_of_chance():
    draw = np.random.default_rng(0)
    top = draw.random((400, 40)).argsort(1)[:, :5]
    rows = np.arange(400) // 4
    found, n_tokens, n_stories = identity_overlap(top, rows, 40)
    assert (n_tokens, n_stories) == (400, 100)
    assert abs(found.value - overlap_by_chance(5, 40)) < 0.003
    pairs = [
        len(set(a) & set(b)) / len(set(a) | set(b))
        for i, a in enumerate(top[:40].tolist())
        for j, b in enumerate(top[:40].tolist())
        if rows[i] != rows[j]
    ]
    assert float(identity_overlap(top[:40], rows[:40], 40)[0].value) == pytest.approx(np.mean(pairs))


def test_lines_and_areas_are_those_of_scipy_and_sklearn():
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(2, 6, 9))
    y += 2 * x + 1
    found = line(moments(torch.from_numpy(x), torch.from_numpy(y)).sum(1).numpy())
    known = linregress(x.ravel(), y.ravel())
    assert float(found["slope"].value) == pytest.approx(known.slope)
    assert float(found["r2"].value) == pytest.approx(known.rvalue**2)
    positive = draw.random(12) < 0.4
    marks = draw.normal(size=(7, 12)).round(1)
    assert float(area(marks, np.ones(7), positive)[0].value) == pytest.approx(roc_auc_score(positive, marks.sum(0)))
    constant = torch.ones(1, 5, dtype=torch.float64)
    assert fisher_energy(constant, constant / 5).item() == 0, "what is added to all logits is nothing"


def test_noise_is_as_long_as_what_it_stands_for_and_the_same_in_every_batch(model):
    stories, found = texts(), {}
    for size in (2, 5):
        for take in Scene(model, stories, batch_size=size).takes():
            change = take.clean.attn_out[1]
            random = noise.like(take, change, 4)
            torch.testing.assert_close(random.norm(dim=-1), change.norm(dim=-1))
            for row, one in zip(take.rows.tolist(), random, strict=True):
                found.setdefault(row, []).append(one[: stories.lengths[row]].clone())
    for first, second in found.values():
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_has_figures_from_its_saved_result_alone(name, model, tmp_path):
    study, about = STUDIES[name]
    knobs = {"labels": [(1, 1)]} if name == "backups" else {}
    result = study(model, texts(), batch_size=3, **knobs)
    assert about and {"measure", "value", "ci_low", "ci_high", "n_tokens", "n_stories"} <= set(result.table)
    known = result.table[result.table.ci_low.notna()]
    assert (known.ci_low <= known.ci_high).all()
    result.save(tmp_path / name)
    drawn = study_figures(Result.load(tmp_path / name))
    assert drawn and all(len(figure.data) for figure in drawn.values())
    if name != "thresholds":  # whose axes and slider are the selection
        assert all(result.meta["selection"] in figure.layout.title.text for figure in drawn.values())
    again = study(model, texts(), batch_size=5, **knobs)
    columns = ["value", "null"]
    np.testing.assert_allclose(again.table[columns], result.table[columns], rtol=1e-6, atol=1e-8)


def test_bad_questions_are_refused(model):
    stories = texts()
    for study, knobs, message in (
        ("share_of_repair", {"mode": "both ways"}, "a mode must be one of"),
        ("dose", {"lambdas": (0, 1)}, "at least 2 lambdas"),
        ("erasure", {"layer": 2}, "erasure needs an MLP layer"),
        ("erasure", {"layer": 0, "component": (1, 0)}, "cannot react"),
        ("hydra", {"target": "next_token"}, "no next one"),
        ("backups", {"labels": "all"}, "labels must be"),
        ("backups", {"labels": [(0, 9)]}, "labels must name some"),
        ("mediation", {"sets": {"ln": [(0, 0)]}}, "a set needs a name"),
        ("self_repression", {"component": [(0, 0), (0, 1)]}, "asked of a head"),
    ):
        with pytest.raises(ValueError, match=message):
            STUDIES[study][0](model, stories, **knobs)
