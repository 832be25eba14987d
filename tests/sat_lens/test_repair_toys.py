"""Models with hand-set weights in which who repairs what is known (the motifs of arXiv 2307.15771, section 2)."""

import pytest
import torch

from sat_lens._tl import HookedTransformerConfig, hooked_transformer
from sat_lens.repair import All, LogitDiff, Zero, heads, self_repair

U = 3.0
"""What head 0 adds to the logit."""


def motif(kind):
    """One head writes U along axis 0 of the stream, which is the logit of id 1; one neuron reads axis 0.

    backup: relu(U - x), added: makes up for what x lacks. eraser: -relu(x). pass-through: nothing.
    """
    cfg = HookedTransformerConfig(
        n_layers=1, d_model=4, n_heads=1, d_head=1, d_mlp=1, d_vocab=5, n_ctx=6, act_fn="relu",
        normalization_type=None, dtype=torch.float64, device="cpu",
    )  # fmt: skip
    model = hooked_transformer(cfg)
    for parameter in model.parameters():
        parameter.data.zero_()
    block = model.blocks[0]
    block.attn.b_V.data.fill_(U)  # z = U, whatever is attended to
    block.attn.W_O.data[0, 0, 0] = 1
    model.unembed.W_U.data[0, 1] = 1
    read, bias, write = {"backup": (-1.0, U, 1.0), "eraser": (1.0, 0.0, -1.0), "pass-through": (0.0, 0.0, 0.0)}[kind]
    block.mlp.W_in.data[0, 0], block.mlp.b_in.data[0], block.mlp.W_out.data[0, 0] = read, bias, write
    return model.eval()


@pytest.mark.parametrize(("kind", "total", "mlps"), [("backup", 0, U), ("eraser", 0, U), ("pass-through", -U, 0)])
def test_motifs(kind, total, mlps):
    model, tokens = motif(kind), torch.randint(5, (3, 6))
    result = self_repair(
        model, tokens, heads(model), Zero(), target=LogitDiff(1, 2), select=All(), downstream="components"
    )
    found = result.per_component().iloc[0]
    assert found.de == U and found.ade == 0, "taking it out changes its own part of the logit by -U"
    assert found.dlogit == total, "the total effect"
    assert found.self_repair == found.sr_mlps == mlps == result.repair_matrix().loc["L0H0", "mlp0"]
    assert found.sr_heads == found.sr_ln == found.sr_own == 0
    assert found.zone == {"backup": "repaired", "eraser": "repaired", "pass-through": "breakage"}[kind]
    assert found.n_tokens == 3 * 5  # position 0 is not measured; a logit difference needs no next token
    assert found.ci_low == found.ci_high == mlps


def test_centred_logits_leave_out_what_is_added_to_all_of_them():
    """Axis 0 raises id 1 by U and the mean over 5 ids by U / 5."""
    model, tokens = motif("pass-through"), torch.ones(2, 6, dtype=torch.long)
    found = self_repair(model, tokens, heads(model), Zero(), select=All()).per_component().iloc[0]
    assert found.de == pytest.approx(U * 4 / 5) and found.n_tokens == 2 * 4
    model.unembed.W_U.data[0] = 1
    found = self_repair(model, tokens, heads(model), Zero(), select=All()).per_component().iloc[0]
    assert found.de == 0


def test_self_repair_of_a_norm_is_the_rise_of_what_is_left():
    """RMS norm, a stream of (U, c): without U the rest, c along axis 1, is divided by less.

    The target reads axis 1 alone: direct effect 0, change of the logit c/s1 - c/s0.
    """
    model = motif("pass-through")
    cfg = model.cfg
    cfg.normalization_type, cfg.eps = "RMS", 0.0
    normed = hooked_transformer(cfg).eval()
    state = model.state_dict()
    for name, parameter in normed.named_parameters():
        parameter.data.copy_(state[name] if name in state else torch.ones_like(parameter))
    normed.pos_embed.W_pos.data[:, 1] = 4.0
    normed.unembed.W_U.data.zero_()
    normed.unembed.W_U.data[1, 1] = 1.0
    tokens = torch.randint(5, (2, 6))
    found = self_repair(normed, tokens, heads(normed), Zero(), target=LogitDiff(1, 2), select=All()).per_component()
    s0, s1 = (25 / 4) ** 0.5, (16 / 4) ** 0.5  # root mean squares of (3, 4, 0, 0) and (0, 4, 0, 0)
    assert found.de[0] == pytest.approx(0)
    assert found.sr_ln[0] == found.self_repair[0] == pytest.approx(4 / s1 - 4 / s0) == pytest.approx(0.4)
    assert found.ln_own[0] == pytest.approx(0.4)
    assert found.scale_ratio[0] == pytest.approx(1.25)
