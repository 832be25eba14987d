"""Neuron2Graph on units whose patterns are known, and the model's answers against plain forward passes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from analyses.explain import Neuron2Graph, RuleSimulator, Subject, UnitSubject, tally
from analyses.explain.n2g import tries
from analyses.texts import Stories
from analyses.unit_streams import units_of
from tests.cases.explained import ID, WORDS, batches, kept, material

A, B, CAT, DOG, SAT, RAN = (ID[w] for w in (" A", " B", " cat", " dog", " sat", " ran"))


def gap(tokens: Tensor) -> Tensor:
    """A, then any token, then B: 2. Anything else: 0."""
    found = torch.zeros(tokens.shape)
    found[:, 2:] = 2.0 * ((tokens[:, 2:] == B) & (tokens[:, :-2] == A))
    return found


def graded(tokens: Tensor) -> Tensor:
    """On `cat` 1, `dog` .6, `sat` .4; with `ran` before it twice as much."""
    level = 1.0 * (tokens == CAT) + 0.6 * (tokens == DOG) + 0.4 * (tokens == SAT)
    ran = torch.zeros(tokens.shape)
    ran[:, 1:] = 1.0 * (tokens[:, :-1] == RAN)
    return level * (1 + ran)


def nowhere(tokens: Tensor) -> Tensor:
    return torch.zeros(tokens.shape)


UNITS: list[Callable[[Tensor], Tensor]] = [gap, graded, nowhere]


class HandMade:
    """Units as functions of the tokens; the likeliest next tokens are always the same."""

    def __init__(self, likely: tuple[int, ...] = (CAT, DOG, SAT, RAN, A, B)) -> None:
        self.likely, self.rows = likely, 0

    def activations(self, tokens: Tensor, units: Tensor) -> Tensor:
        self.rows += len(tokens)
        every = torch.stack([unit(tokens)[:, -1] for unit in UNITS], 1)
        return every[torch.arange(len(tokens)), units]

    def predictions(self, tokens: Tensor, n: int) -> Tensor:
        return torch.tensor(self.likely[:n]).expand(len(tokens), -1)


def stories(n: int = 60, seed: int = 0) -> Stories:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, len(WORDS), (n, 30), generator=generator)
    tokens[:, 0] = 0
    tokens[::2, 5], tokens[::2, 7] = A, B
    tokens[::3, 10], tokens[::3, 11] = RAN, CAT
    return Stories(tokens, torch.full((n,), 30))


STORIES = stories()
VALUES = torch.stack([unit(STORIES.tokens) for unit in UNITS], -1)


def test_a_gap_becomes_a_trie_with_any_token_between() -> None:
    found = tries(Neuron2Graph(HandMade()), material(STORIES, VALUES))
    assert found[0] == {(A, None, B): 2.0}
    assert found[2] == {}


def test_the_shortest_text_that_keeps_half_of_the_peak_is_the_pattern() -> None:
    """`ran cat` peaks at 2; `cat` alone gives half of it, which is not more than half."""
    half = Neuron2Graph(HandMade(), n_augment=0, important=0.3)
    assert tries(half, material(STORIES, VALUES))[1][RAN, CAT] == 2.0
    lower = dataclasses.replace(half, keep=0.49)
    assert all(len(pattern) == 1 for pattern in tries(lower, material(STORIES, VALUES))[1])
    assert tries(lower, material(STORIES, VALUES))[1][(CAT,)] == 1.0


def test_importance_decides_what_is_named() -> None:
    """With another token in the place of `ran`, half is left: importance .5, named only where that is enough."""
    given = material(STORIES, VALUES)
    for important, named in ((0.3, True), (0.75, False)):
        found = tries(Neuron2Graph(HandMade(), n_augment=0, important=important), given)[1]
        assert ((RAN, CAT) in found) == named and (named or found[(CAT,)] > 1)


def test_augmentation_adds_what_keeps_half() -> None:
    """`dog` keeps .6 of `cat`, `sat` .4."""
    only_cat = torch.where((STORIES.tokens == DOG) | (STORIES.tokens == SAT), A, STORIES.tokens)
    given = material(Stories(only_cat, STORIES.lengths), torch.stack([unit(only_cat) for unit in UNITS], -1))
    alone = tries(Neuron2Graph(HandMade(), n_augment=0, keep=0.49), given)[1]
    more = tries(Neuron2Graph(HandMade(), keep=0.49), given)[1]
    assert set(alone) == {(CAT,)}
    assert set(more) == {(CAT,), (DOG,)}
    assert more[(DOG,)] == pytest.approx(0.6)
    none = tries(Neuron2Graph(HandMade(likely=(A, B, RAN, CAT, A, B)), keep=0.49), given)[1]
    assert set(none) == {(CAT,)}


def test_explanations_predict_what_was_planted_on_other_stories() -> None:
    explanations = Neuron2Graph(HandMade()).explain(material(STORIES, VALUES))
    other = stories(40, seed=1)
    values = torch.stack([unit(other.tokens) for unit in UNITS], -1)
    held = batches(other, values)
    found = tally(RuleSimulator(explanations), lambda: held, other)
    assert found.pearson[0] == pytest.approx(1) and found.r2[0] == pytest.approx(1)
    assert float(found.pearson[1]) > 0.8
    assert bool(found.pearson[2].isnan()) and explanations[2].rule["entries"] == []
    assert '" B" after " A" *' in explanations[0].text


def test_values_are_means_over_the_stories_and_not_peaks() -> None:
    """`ran` before or not is random: a pattern of one token has the mean of both."""
    given = material(STORIES, VALUES)
    (_, e, _) = Neuron2Graph(HandMade(), keep=0.3, n_augment=0).explain(given)
    entries = {tuple(tokens): e.rule["scale"] * level / 127 for tokens, level in e.rule["entries"]}
    at = kept(STORIES) & (STORIES.tokens == CAT)
    n = int(at.sum())
    measured = tries(Neuron2Graph(HandMade(), keep=0.3, n_augment=0), given)[1][(CAT,)]
    wanted = (float(VALUES[..., 1][at].sum()) + measured) / (n + 1)
    assert set(entries) <= {(CAT,), (DOG,), (SAT,)}
    assert entries[(CAT,)] == pytest.approx(wanted, abs=0.01) and 1 < wanted < 2


def test_the_seed_alone_decides() -> None:
    given = material(STORIES, VALUES)
    assert Neuron2Graph(HandMade()).explain(given) == Neuron2Graph(HandMade()).explain(given)
    assert isinstance(HandMade(), Subject)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="1 to 32 tokens"):
        Neuron2Graph(HandMade(), longest=99)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Neuron2Graph(HandMade(), keep=1.5)


@pytest.mark.parametrize(("kind", "stream"), [("neuron", "clean"), ("neuron", "ablated"), ("mask_channel", "ablated")])
def test_the_model_is_asked_as_a_forward_pass_tells(
    tiny_model: Any, tiny_tokenizer: Any, kind: str, stream: str
) -> None:
    model = tiny_model()
    model.tokenizer = tiny_tokenizer
    units = units_of(model, kind, stream)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 29, (9, 4), generator=generator)
    tokens[5] = tokens[2]
    asked = torch.randint(units.n, (9,), generator=generator)
    subject = UnitSubject(model, units, batch=2)
    found = subject.activations(tokens, asked)
    begun = torch.cat([torch.zeros(9, 1, dtype=torch.long), tokens], 1)
    point = {"neuron clean": "mlp.hook_post", "neuron ablated": "mlp.hook_gated_post"}.get(
        f"{kind} {stream}", "attn.hook_mask"
    )
    _, cache = model.run_with_cache(begun, stream="clean" if stream == "clean" else "both")
    every = torch.cat([cache[f"blocks.{layer}.{point}"][:, -1].flatten(1) for layer in range(2)], 1)
    torch.testing.assert_close(found, every[torch.arange(9), asked].float())
    likely = subject.predictions(tokens, 3)
    assert torch.equal(likely, model(begun)[:, -1].topk(3).indices)
    assert torch.equal(subject.predictions(tokens[:, :0], 3), model(begun[:, :1])[:, -1].topk(3).indices)


def test_units_of_a_model_are_explained(tiny_model: Any, tiny_tokenizer: Any) -> None:
    from analyses.explain import Material, Vocabulary
    from analyses.unit_streams import unit_batches

    model = tiny_model()
    model.tokenizer = tiny_tokenizer
    units = units_of(model, "neuron", layers=[0])
    tokens = torch.randint(1, 29, (20, 12), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    texts = Stories(tokens, torch.full((20,), 12))
    held = [b._replace(values=b.values.clone()) for b in unit_batches(model, texts, units)]
    given = Material(lambda: held, texts, torch.arange(20), Vocabulary.of(tiny_tokenizer, 29))
    n2g = Neuron2Graph(UnitSubject(model, units), n_examples=2, n_augment=2)
    explanations = n2g.explain(given)
    assert len(explanations) == units.n and all(e.explainer == "rules:n2g" for e in explanations)
    found = tally(RuleSimulator(explanations), given.source, texts)
    assert float(found.pearson.nanmean()) > 0.2
    fewer = dataclasses.replace(n2g, most=2).explain(given)
    assert all(len(e.rule["entries"]) <= 2 for e in fewer)
