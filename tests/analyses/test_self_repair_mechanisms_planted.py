"""Hand-made models in which who repairs what, through what and how much is known: the studies have to say so."""

import numpy as np
import pytest
import torch

from analyses.self_repair.mechanisms.backups import backups
from analyses.self_repair.mechanisms.dose import dose
from analyses.self_repair.mechanisms.erasure import anti_erasure_neurons, erasure
from analyses.self_repair.mechanisms.erasure_projection import erasure_projection
from analyses.self_repair.mechanisms.hydra import hydra
from analyses.self_repair.mechanisms.mediation import mediation
from analyses.self_repair.mechanisms.share_of_repair import share_of_repair
from analyses.texts import Stories
from sat_lens._tl import HookedTransformerConfig, hooked_transformer
from sat_lens.repair import All, LogitDiff, Zero

U = 3.0
"""What head 0 of layer 0 adds to the logit."""
ONE = LogitDiff(1, 2)


def blank(n_layers=1, n_heads=1, d_mlp=4, d_head=1, act_fn="relu"):
    """All weights 0; axis 0 of the stream is the logit of id 1; head 0 of layer 0 writes U there at every token."""
    cfg = HookedTransformerConfig(
        n_layers=n_layers, d_model=8, n_heads=n_heads, d_head=d_head, d_mlp=d_mlp, d_vocab=5, n_ctx=6, act_fn=act_fn,
        normalization_type=None, dtype=torch.float64, device="cpu",
    )  # fmt: skip
    model = hooked_transformer(cfg)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.blocks[0].attn.b_V.data[0, 0] = U
    model.blocks[0].attn.W_O.data[0, 0, 0] = 1
    model.unembed.W_U.data[0, 1] = 1
    return model.eval()


def motif(kind):
    """Neuron 2 of 4. backup: relu(U - x); eraser: -relu(x); pass-through: nothing."""
    model = blank()
    read, bias, write = {"backup": (-1.0, U, 1.0), "eraser": (1.0, 0.0, -1.0), "pass-through": (0.0, 0.0, 0.0)}[kind]
    mlp = model.blocks[0].mlp
    mlp.W_in.data[0, 2], mlp.b_in.data[2], mlp.W_out.data[2, 0] = read, bias, write
    return model


def texts(n=6, n_pos=6):
    tokens = torch.randint(5, (n, n_pos), generator=torch.Generator().manual_seed(0))
    return Stories(tokens, torch.full((n,), n_pos))


def value(result, measure, column="value", **index):
    table = result.table[result.table.measure == measure]
    for name, wanted in index.items():
        table = table[table[name] == wanted]
    assert len(table) == 1, f"{measure} {index}: {len(table)} rows"
    return float(table[column].iloc[0])


KNOBS = {"component": (0, 0), "ablation": Zero(), "select": All(), "target": ONE}


def test_an_eraser_is_anti_erasure_and_a_backup_is_positive():
    found = {kind: erasure(motif(kind), texts(), top=1, freeze=(1, 3), **KNOBS) for kind in ("eraser", "backup")}
    for kind, result in found.items():
        assert value(result, "de_clean", neuron=2) == (-U if kind == "eraser" else 0)
        assert value(result, "de_abl", neuron=2) == (0 if kind == "eraser" else U)
        assert value(result, "repair", neuron=2) == value(result, "layer_repair") == U
        share = {"anti_erasure": 1.0, "positive": 0.0} if kind == "eraser" else {"anti_erasure": 0.0, "positive": 1.0}
        for name, of in share.items():
            assert value(result, "class_share", **{"class": name}) == of
        assert value(result, "top_share") == 1, "one neuron does it all"
        assert [value(result, "threshold", rank=rank, p=0.5) for rank in (1, 2)] == [1, 0]
        assert value(result, "cumulative", rank=1) == 1
        assert value(result, "self_repair") == U
        assert value(result, "frozen", set="top 1") == U and value(result, "frozen_share", set="top 1") == 1
        assert value(result, "frozen", set="anti_erasure") == (U if kind == "eraser" else 0)
        assert value(result, "top_rate", neuron=2) == 1 and value(result, "overlap") == 1
        assert value(result, "overlap", "null") == pytest.approx(1 / 4), "one of four at random"
        assert (
            value(result, "repair", "n_tokens", neuron=2) == 6 * 5
            and value(result, "repair", "n_stories", neuron=2) == 6
        )
    assert anti_erasure_neurons(found["eraser"], 1) == [2]


@pytest.mark.parametrize(("kind", "repair"), [("backup", U), ("eraser", U), ("pass-through", 0.0)])
def test_mediation_of_the_motifs_runs_through_the_mlp_alone(kind, repair):
    result = mediation(motif(kind), texts(), **KNOBS)
    assert value(result, "repair") == repair
    for part, blocked in {"ln": 0, "mlps": repair, "heads+mlps": repair, "all": repair}.items():
        assert value(result, "blocked", part=part) == blocked
    if repair:
        assert value(result, "share", part="mlps") == value(result, "share", part="all") == 1


@pytest.mark.parametrize(("kind", "slope"), [("backup", 1.0), ("eraser", 1.0), ("pass-through", 0.0)])
def test_hydra_motifs_compensate_wholly_or_not_at_all(kind, slope):
    """The head writes U or 0 by the token, so that what is replaced varies from story to story."""
    model = motif(kind)
    attention = model.blocks[0].attn
    attention.b_V.data.zero_()
    model.embed.W_E.data[:, 1] = torch.tensor([0.0, 1.0, 2.0, 2.5, 3.0])  # at most U: the backup is never saturated
    attention.W_V.data[0, 1, 0] = 1.0
    result = hydra(model, texts(12), draws=5, target=ONE)
    story = result.table[result.table.story >= 0]
    de, ce = (story[(story.measure == m) & (story.kind == "attn")].value.to_numpy() for m in ("story_de", "story_ce"))
    assert np.ptp(de) > 0.5
    np.testing.assert_allclose(ce, slope * de, atol=1e-12)
    assert value(result, "slope", layer=0, kind="attn") == pytest.approx(slope, abs=1e-12)
    assert value(result, "te", layer=0, kind="attn") == pytest.approx((1 - slope) * de.mean(), abs=1e-12)
    if slope:
        assert value(result, "r2", layer=0, kind="attn") == pytest.approx(1)
    assert value(result, "ce", layer=0, kind="mlp") == pytest.approx(0, abs=1e-12), "nothing is behind the last MLP"


def backup_head(model, head, strength=40.0):
    """Head `head` of layer 1 looks at position 0, which says nothing, while axis 0 holds U, and elsewhere without."""
    attention = model.blocks[1].attn
    model.pos_embed.W_pos.data[0, 1] = 1.0  # position 0
    model.pos_embed.W_pos.data[1:, 2] = 1.0  # the others
    attention.W_Q.data[head, 0, 0], attention.b_Q.data[head, 0] = strength, -strength * U / 2
    attention.W_K.data[head, 1, 0] = 1.0
    attention.W_V.data[head, 2, 0] = U
    attention.W_O.data[head, 0, 0] = 1.0


def negative_head(model, head):
    """Head `head` of layer 1 takes back half of axis 0, wherever it looks (copy suppression)."""
    attention = model.blocks[1].attn
    attention.W_V.data[head, 0, 0], attention.W_O.data[head, 0, 0] = 0.5, -1.0


def test_the_planted_backup_is_found():
    model = blank(n_layers=2, n_heads=4)
    backup_head(model, 2)
    result = backups(model, texts(), seeds=[(0, 0)], labels=["L1H2"], ablation=Zero(), select=All(), target=ONE)
    assert value(result, "energy", head="L1H2") == pytest.approx(0, abs=1e-12), "it hides from a single ablation"
    completion = result.table[result.table.measure == "completion"].set_index("head").value
    assert completion.idxmax() == "L1H2" and completion["L1H2"] > 0.1
    assert completion.drop("L1H2").abs().max() < 1e-12
    assert value(result, "de_growth", head="L1H2") == pytest.approx(U)
    for score in ("completion", "de_growth"):
        assert value(result, "auc", score=score) == 1
    assert value(result, "auc", "null", score="completion") == 0.5
    assert value(result, "auc", "null_high", score="completion") == 1, "one label among seven heads is no evidence"


def test_a_negative_head_carries_what_it_takes_back_and_a_backup_the_rest():
    """U + backup 0 - U/2 before, 0 + U - 0 after: both react, by U and by U / 2."""
    model = blank(n_layers=2, n_heads=4)
    backup_head(model, 2)
    negative_head(model, 3)
    knobs = {**KNOBS, "n_null": 4}
    for carriers, carried in (([(1, 3)], U / 2), ([(1, 2)], U), ([(1, 2), (1, 3)], 1.5 * U), ([(1, 1)], 0.0)):
        result = share_of_repair(model, texts(), carriers=carriers, **knobs)
        assert value(result, "repair") == pytest.approx(1.5 * U)
        for measure in ("sum", "freeze"):
            assert value(result, measure) == pytest.approx(carried, abs=1e-12)
            assert value(result, f"{measure}_share") == pytest.approx(carried / (1.5 * U), abs=1e-12)
    result = mediation(model, texts(), sets={"negative": [(1, 3)]}, **KNOBS)
    assert value(result, "share", part="negative") == pytest.approx(1 / 3)
    assert value(result, "share", part="heads") == pytest.approx(1) and value(result, "share", part="mlps") == 0
    assert "L1H3" in share_of_repair(model, texts(), **knobs).meta["set"], "the default: what suppresses most"


def test_projection_of_heads_that_take_back():
    model = blank(n_layers=2, n_heads=2)
    negative_head(model, 1)
    result = erasure_projection(model, texts())
    assert value(result, "ratio", early="L0H0", later="L1H1") == pytest.approx(-0.5)
    assert value(result, "ratio", "null", early="L0H0", later="L1H1") == pytest.approx(-0.5), "it always writes that"
    assert value(result, "ratio", early="L0H0", later="L1H0") == 0


def test_projection_tells_what_is_taken_back_of_a_token_from_what_is_always_written():
    """Head 0.0 copies its own token (one-hot), one neuron a token writes -3/4 of it; the null meets another token."""
    model = blank(d_mlp=5, d_head=5)
    attention, mlp = model.blocks[0].attn, model.blocks[0].mlp
    attention.b_V.data.zero_()
    attention.W_O.data.zero_()
    eye = torch.eye(5, dtype=torch.float64)
    model.embed.W_E.data[:, 3:] = eye
    attention.W_V.data[0, 3:], attention.W_O.data[0, :, 3:] = eye, eye
    mlp.W_in.data[3:], mlp.W_out.data[:, 3:] = eye, -eye / 4
    n_pos = 6
    tokens = torch.arange(5)[:, None].expand(5, n_pos).clone()  # a story of one token: the head copies just that
    result = erasure_projection(model, Stories(tokens, torch.full((5,), n_pos)))
    assert value(result, "ratio", early="L0H0", later="mlp0") == pytest.approx(-0.5)  # -1/4 of token and its copy
    tokens[:, 3:] = (tokens[:, 3:] + 1) % 5  # what is written at the end differs from what is written at the start
    result = erasure_projection(model, Stories(tokens, torch.full((5,), n_pos)))
    pair = {"early": "L0H0", "later": "mlp0"}
    assert value(result, "ratio", "null", **pair) > value(result, "ratio", **pair)


def test_response_of_a_linear_model_is_affine_in_the_dose():
    """Heads that look everywhere alike and a neuron that is always on: gamma is the whole response."""
    model = blank(n_layers=2, n_heads=2)
    negative_head(model, 1)
    mlp = model.blocks[1].mlp
    mlp.W_in.data[0, 0], mlp.b_in.data[0], mlp.W_out.data[0, 0] = 0.25, 100.0, 1.0  # reads what is left of axis 0
    result = dose(model, texts(), lambdas=(0.2, 0.5, 1.0), **KNOBS)
    fits = result.table[result.table.measure != "response"]  # one row a measure and receiver
    table = fits.set_index(["measure", "receiver"]).value
    expected = {"L1H1": U / 2, "mlp1": -0.25 * U / 2, "logit": -U + U / 2 - 0.25 * U / 2, "L1H0": 0.0, "mlp0": 0.0}
    for receiver, gamma in expected.items():
        for measure in ("gamma", "gamma_at_0"):
            assert table[measure, receiver] == pytest.approx(gamma, abs=1e-9)
        assert table["own", receiver] == pytest.approx(0, abs=1e-12)
        if gamma:
            assert table["affinity", receiver] == pytest.approx(1, abs=1e-12)
    responses = result.table[(result.table.measure == "response") & (result.table.receiver == "L1H1")]
    np.testing.assert_allclose(responses.value, responses["lambda"] * U / 2)


def test_response_of_a_saturating_backup_is_not_affine():
    """relu(U/2 - x): nothing happens until half of U is gone."""
    model = motif("backup")
    model.blocks[0].mlp.b_in.data[2] = U / 2
    result = dose(model, texts(), lambdas=(0.25, 0.5, 0.75, 1.0), **KNOBS)
    assert value(result, "gamma_at_0", receiver="mlp0") == 0 < value(result, "gamma", receiver="mlp0")
    assert value(result, "affinity", receiver="mlp0") < 0.9
