"""Trees: questions by hand, splits as scikit-learn finds them, pruning by trying all."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from analyses.explain import Explanation, Trees, simulate
from analyses.explain.features import answers, candidate_features, in_quote, seen_before, since_sentence
from analyses.explain.rule import description_bits, feature_bits
from analyses.explain.trees import grow, prune
from analyses.explain.vocabulary import token_class
from tests.cases.explained import ID, VOCABULARY, WORDS, kept, material, planted, random_stories

STORIES = random_stories(30, 24, seed=9)


def test_questions_are_answered_as_worked_out_by_hand() -> None:
    words = ["<s>", " A", '"', " cat", ".", " cat", '"', '"', "\n", "ly", " 7"]
    tokens = torch.tensor([[ID[word] for word in words]])
    asked: dict[str, tuple[list[Any], list[int]]] = {
        "cat": (["token", 0, ID[" cat"]], [0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0]),
        "after a mark": (["token", 1, ID['"']], [0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0]),
        "two after <s>": (["token", 2, 0], [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        "a capital": (["class", 0, "capitalized word"], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        "after a piece": (["class", 1, "word piece"], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        "position": (["position", 2], [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        "first two of a sentence": (["since_sentence", 2], [1, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1]),
        "quoted": (["in_quote"], [0, 0, 1, 1, 1, 1, 0, 1, 0, 0, 0]),
        "seen": (["seen"], [0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0]),
    }
    found = answers([feature for feature, _ in asked.values()], tokens, VOCABULARY)[0].T
    for (name, (_, wanted)), got in zip(asked.items(), found, strict=True):
        assert got.long().tolist() == wanted, name


def test_states_of_the_text_are_those_of_a_loop() -> None:
    for row, length in zip(STORIES.tokens, STORIES.lengths.tolist(), strict=True):
        marks = first = 0
        quoted, since, again = [], [], []
        for pos, token in enumerate(row[:length].tolist()):
            if pos and WORDS[row[pos - 1]] in ("<s>", ".", "\n"):
                first = pos
            marks = 0 if WORDS[token] == "\n" else marks + (WORDS[token] == '"')
            quoted.append(marks % 2 == 1)
            since.append(pos - first)
            again.append(token in row[:pos].tolist())
        one = row[None, :length]
        assert in_quote(one, VOCABULARY)[0].tolist() == quoted
        assert since_sentence(one, VOCABULARY)[0].tolist() == since
        assert seen_before(one)[0].tolist() == again


def test_classes_are_by_spelling() -> None:
    named = {" the": "word", "ly": "word piece", " Sara": "capitalized word", " 12": "number", '."': "punctuation",
             "\n": "space", "": "other"}  # fmt: skip
    assert {text: token_class(text) for text in named} == named
    assert VOCABULARY.quoted(ID["\n"]) == '"\\n"' and VOCABULARY.quoted(999) == "id 999"


def test_trees_split_as_scikit_learn_does() -> None:
    tree = pytest.importorskip("sklearn.tree")
    features = candidate_features(STORIES.tokens[kept(STORIES)], 12)
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(30, 24, 8, generator=generator) + planted(STORIES)[1][..., [0, 1, 2, 3, 6, 0, 1, 3]]
    grown = grow(material(STORIES, values), features, depth=3, least=4)
    real = kept(STORIES)
    asked = answers(features, STORIES.tokens, VOCABULARY)[real].numpy()
    for unit in range(8):
        y = values[real][:, unit].numpy()
        other = tree.DecisionTreeRegressor(max_depth=3, min_samples_leaf=4).fit(asked, y)
        node, error = 0, float(((y - other.predict(asked)) ** 2).sum())
        leaves = grown.n[7:, unit].clamp(min=1)
        mine = float(grown.square[unit] - (grown.total[7:, unit].square() / leaves).sum())
        assert mine == pytest.approx(error, rel=1e-5)
        assert int(grown.feature[node, unit]) == int(other.tree_.feature[0])


def test_a_leaf_has_no_fewer_tokens_than_asked_for() -> None:
    features = candidate_features(STORIES.tokens[kept(STORIES)], 12)
    values = torch.randn(30, 24, 8, generator=torch.Generator().manual_seed(4))
    grown = grow(material(STORIES, values), features, depth=3, least=30)
    sizes = grown.n[grown.n > 0]
    assert float(sizes.min()) >= 30 and len(sizes.unique()) > 5
    assert torch.equal(grown.n[7:].sum(0), grown.n[0])


def test_pruning_finds_the_tree_of_least_description_length() -> None:
    features = candidate_features(STORIES.tokens[kept(STORIES)], 12)
    asked = [["class", 0, "word"], ["position", 8], ["in_quote"]]
    word, early, quoted = answers(asked, STORIES.tokens, VOCABULARY).double().unbind(-1)
    made = [
        0 * word,
        word,
        word * early,
        word + quoted - word * quoted,
        early * (1 + word),
        word + 2 * early + 3 * quoted,
    ]
    values = 0.2 * torch.randn(30, 24, 6, generator=torch.Generator().manual_seed(4)) + torch.stack(made, -1)
    grown = grow(material(STORIES, values), features, depth=2)
    bits = torch.tensor([1 + feature_bits(f[0], len(WORDS)) for f in features], dtype=torch.float64)
    real = kept(STORIES)

    def length(unit: int, splits: tuple[bool, bool, bool], scale: float, variance: float) -> float:
        root, yes, no = splits
        leaves = [i for i, on in ((0, not root), (1, root and not yes), (2, root and not no)) if on]
        leaves += [3, 4] * (root and yes) + [5, 6] * (root and no)
        code = 9 * len(leaves) + sum(
            float(bits[grown.feature[i, unit]]) for i in range(3) if splits[i] and (root or not i)
        )
        error = 0.0
        for leaf in leaves:
            n, s = float(grown.n[leaf, unit]), float(grown.total[leaf, unit])
            level = round(s / max(n, 1) / scale * 127) if scale else 0
            error += n * (scale * level / 127) ** 2 - 2 * s * scale * level / 127
        return error / (2 * math.log(2) * variance) + code

    def shape(node: Any) -> tuple[bool, bool, bool]:
        inner = isinstance(node, dict)
        return inner, inner and isinstance(node["then"], dict), inner and isinstance(node["else"], dict)

    seen = set()
    pruned = prune(grown, bits, 1.0, features)
    for unit, (scale, node) in enumerate(pruned):
        rule = {"kind": "tree", "scale": scale, "root": node}
        e = Explanation(0, "rules:tree", "", rule, description_bits(rule, len(WORDS)), "")
        y = simulate([e], STORIES.tokens, STORIES.lengths, VOCABULARY)[..., 0]
        variance = float((values[..., unit] - y)[real].double().square().mean())  # what this tree leaves
        lengths = {s: length(unit, s, scale, variance) for s in
                   [(False,) * 3, *((True, a, b) for a in (False, True) for b in (False, True))]}  # fmt: skip
        assert lengths[shape(node)] <= min(lengths.values()) + 0.5  # a variance of one step earlier is off by as much
        seen.add(shape(node))
    assert len(seen) >= 3


def test_noise_has_no_tree() -> None:
    values = torch.randn(30, 24, 40, generator=torch.Generator().manual_seed(4))
    found = Trees().explain(material(STORIES, values))
    assert sum(isinstance(e.rule["root"], dict) for e in found) <= 1
    assert "Nothing is known" in found[0].text


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="1 to 12 deep"):
        Trees(depth=13)
    empty = dataclasses.replace(material(STORIES, torch.zeros(30, 24, 1)), source=lambda: [])
    with pytest.raises(ValueError, match="at least 1 token"):
        grow(empty, [["seen"]], 1)
