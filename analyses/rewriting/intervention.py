"""Intervention: is what a latent is said to do to the output what it does? For reading weights, not activations.

The output explanation of a latent names the tokens that its decoder row promotes and suppresses most
(`analyses.explain.output`). The latent is raised to its 99 % quantile at the last token of some beginnings of stories;
the score is how much more the log-probability of the promoted tokens rises than that of the suppressed ones (nats), the
floor the same with another latent's tokens.

Source: the counterfactual scoring of arXiv 2410.13928; differs: the explanation is of weights, the judge is arithmetic.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.explain.output import output_explanations
from analyses.rewriting.setting import Setting, high
from sat_lens.coders.substitute import AnyCoder, Substitution

NAMED = 10
CONTEXTS = 8
LONGEST = 24
"""Tokens of a beginning."""
_LOGITS = 2**24  # held at once


def intervention(setting: Setting) -> dict[str, Float[Tensor, "context latent"]] | None:
    """`effect` and `floor` of each latent in each context, nats; NaN for one that is never active.

    None where the site is not one that writes into the residual stream.

    Cost: CONTEXTS edited rows of at most LONGEST tokens a latent.
    """
    model, coder = setting.model, setting.coder
    if coder.cfg.d_out != model.cfg.d_model or not coder.cfg.hook_out.endswith(("mlp_out", "resid_post", "resid_mid")):
        return None
    said = output_explanations(coder.W_dec.float(), model, setting.vocabulary, min(NAMED, setting.vocabulary.n))
    rules = [e.rule for e in said if e.rule]
    named = {
        side: torch.tensor([[token for token, _ in r[side]] for r in rules]) for side in ("promoted", "suppressed")
    }
    order = torch.from_numpy(np.random.default_rng(setting.seed).permutation(setting.n_latents))
    giver = torch.empty_like(order)
    giver[order] = order.roll(1)
    top = high(setting.of("explain"))
    rows = setting.splits.score[:CONTEXTS]
    found = {name: torch.zeros(len(rows), setting.n_latents, dtype=torch.float64) for name in ("effect", "floor")}
    run = Substitution(model, coder.cfg)
    for i, row in enumerate(rows.tolist()):
        tokens = setting.stories.tokens[row, : min(int(setting.stories.lengths[row]), LONGEST)].to(model.cfg.device)
        for latents in torch.arange(setting.n_latents).split(max(1, _LOGITS // model.cfg.d_vocab)):
            change = _raised(run, coder, tokens, latents, top[latents])
            for name, whose in (("effect", latents), ("floor", giver[latents])):
                up, down = (change.gather(1, named[side][whose]).mean(1) for side in ("promoted", "suppressed"))
                found[name][i, latents] = up - down
    return {name: values.where(top > 0, torch.nan) for name, values in found.items()}


def _raised(
    run: Substitution,
    coder: AnyCoder,
    tokens: Int[Tensor, " pos"],
    latents: Int[Tensor, " row"],
    top: Float[Tensor, " row"],
) -> Float[Tensor, "row d_vocab"]:
    """Change of the log-probabilities behind a text when each latent, in a row of its own, is raised at its end."""
    texts = tokens.repeat(len(latents), 1)
    last = torch.zeros(texts.shape, dtype=torch.bool, device=texts.device)
    last[:, -1] = True
    with run.suffix.ready():
        prefix = run.suffix.prefix(texts)
        z = coder.dense(coder.encode(prefix.x[:, -1])).gather(1, latents.to(texts.device)[:, None])
        y = prefix.y.clone()
        y[:, -1] += ((top.to(z)[:, None] - z).clamp(min=0) * coder.W_dec[latents.to(texts.device)]).to(y)
        after, before = (run.suffix.logits(run.suffix.final(prefix, of), last) for of in (y, prefix.y))
        return (after.log_softmax(-1) - before.log_softmax(-1)).double().cpu()
