"""Explanations of a coder's latents: by rules, of all of them, or by a language model, of a sample.

| name | explanation |
| --- | --- |
| `token`, `ngram` | mean activation after a token, or after up to three |
| `n2g` | tries of the shortest patterns that a latent fires on, found by asking the model (Neuron2Graph) |
| `tree` | a regression tree of what the tokens so far tell |

Rules are no natural language: every artefact names its explainer. An explanation's `unit` is its latent.
"""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from analyses.explain import Explainer, Explanation, Material, Neuron2Graph, Ngrams, Trees
from analyses.explain.chat import ChatBackend
from analyses.explain.llm_explainer import LlmExplainer
from analyses.rewriting.choices import RULES
from analyses.rewriting.latent_subject import LatentSubject
from analyses.rewriting.setting import Setting, n_active
from analyses.rewriting.shortening import fitting, shortened

BLOCK = 512
"""Latents that are explained at once."""
LEAST_ACTIVE = 10
"""Tokens at which a latent that a language model is asked about is active, at least."""


def explainer_of(rule: str, setting: Setting, latents: Int[Tensor, " latent"], price: float = 1.0) -> Explainer:
    """One of RULES."""
    if rule not in RULES:
        raise ValueError(f"a rule must be one of {', '.join(RULES)}; got {rule!r}")
    if rule == "n2g":
        return Neuron2Graph(LatentSubject(setting.model, setting.coder, latents))
    return Trees(price=price) if rule == "tree" else Ngrams(order=1 if rule == "token" else 3, price=price)


def explained_by_rules(setting: Setting, rule: str, *, price: float = 1.0, progress: bool = False) -> list[Explanation]:
    """An explanation of every latent, in their order; of one that nothing can be said of, a constant.

    Cost: a few passes over the latents of the split to explain from, a block of BLOCK latents at a time.
    """
    found: list[Explanation] = []
    blocks = torch.arange(setting.n_latents).split(BLOCK)
    for latents in tqdm(blocks, desc=f"rules:{rule}", unit="block", disable=None if progress else True):
        explanations = explainer_of(rule, setting, latents, price).explain(material_of(setting, latents))
        found += of_latents(explanations, latents)
    return found


def within_bits(
    setting: Setting, rule: str, explanations: Sequence[Explanation], most: float | int, *, progress: bool = False
) -> list[Explanation]:
    """The same latents' explanations in at most so many bits."""
    if rule == "tree":
        return fitting(
            explanations, most, lambda price: explained_by_rules(setting, rule, price=price, progress=progress)
        )
    return [shortened(explanation, most, setting.vocabulary) for explanation in explanations]


def explained_by_model(
    setting: Setting, backend: ChatBackend, latents: Int[Tensor, " latent"], *, progress: bool = False
) -> tuple[list[Explanation], dict[int, str]]:
    """What a language model says of some latents, and why there is nothing of others, by latent.

    Raises:
        ChatError: the model cannot be asked, or no more may be spent.

    Cost: a request a latent.
    """
    found = LlmExplainer(backend, progress=progress).explained(material_of(setting, latents))
    chosen = [(latents[i], e) for i, e in enumerate(found.explanations) if e is not None]
    explanations = [dataclasses.replace(e, unit=int(latent)) for latent, e in chosen]
    return explanations, {int(latents[i]): why for i, why in found.missing.items()}


def sampled_latents(setting: Setting, n: int) -> Int[Tensor, " latent"]:
    """Latents drawn at random among those that are active often enough to be explained, ascending."""
    live = (n_active(setting.of("explain")) >= LEAST_ACTIVE).nonzero()[:, 0]
    if not len(live):
        raise ValueError(f"no latent is active at {LEAST_ACTIVE} tokens or more of the stories to explain from")
    chosen = torch.randperm(len(live), generator=torch.Generator().manual_seed(setting.seed))[:n]
    return live[chosen].sort().values


def material_of(setting: Setting, latents: Int[Tensor, " latent"]) -> Material:
    """What an explainer may see of some latents."""
    source = setting.source("explain", latents)
    return Material(source, setting.stories, setting.splits.explain, setting.vocabulary, seed=setting.seed)


def of_latents(explanations: Sequence[Explanation], latents: Int[Tensor, " latent"]) -> list[Explanation]:
    """The explanations with the latents' own numbers."""
    pairs = zip(explanations, latents.tolist(), strict=True)
    return [dataclasses.replace(explanation, unit=latent) for explanation, latent in pairs]
