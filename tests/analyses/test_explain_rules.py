"""Rules, their length, their matching and their files."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.explain import (
    Explanation,
    RuleSimulator,
    load_explanations,
    output_explanations,
    save_explanations,
    simulate,
)
from analyses.explain.patterns import PatternMatcher
from analyses.explain.rule import checked_rule, description_bits, gamma_bits, patterns
from tests.cases.explained import ID, VOCABULARY, random_stories

TREE = {
    "kind": "tree",
    "scale": 2.0,
    "root": {"if": ["token", 0, 6], "then": 127, "else": {"if": ["in_quote"], "then": 64, "else": -3}},
}
PATTERNS = patterns(1.5, 2, [[[4, None, 5], 127], [[5], 60]])
OUTPUT = {"kind": "output", "promoted": [[3, 1.25]], "suppressed": [[4, -2.0]]}


def explanation(rule: dict[str, Any] | None, unit: int = 0) -> Explanation:
    return Explanation(unit, "rules:test", "a text — of “any” kind \u2028", rule, 12.5, "ab" * 32)


pattern = st.lists(st.integers(0, 2), min_size=1, max_size=4).map(
    lambda ids: tuple(None if 0 < i < len(ids) - 1 and token == 0 else token for i, token in enumerate(ids))
)


@given(st.lists(st.lists(pattern, max_size=5, unique=True), min_size=1, max_size=3), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_longest_pattern_that_fits_is_matched_as_by_trying_each(units: list[list[Any]], seed: int) -> None:
    tokens = torch.randint(0, 3, (3, 7), generator=torch.Generator().manual_seed(seed))
    matcher = PatternMatcher(units)
    found = matcher.matches(tokens)
    for row in range(3):
        for pos in range(7):
            for unit, own in enumerate(units):
                fits = [
                    (len(p), sum(t is not None for t in p), [-1 if t is None else t for t in p], i)
                    for i, p in enumerate(own)
                    if len(p) <= pos + 1
                    and all(t is None or t == int(tokens[row, pos - len(p) + 1 + j]) for j, t in enumerate(p))
                ]
                at = int(found[row, pos, unit])
                assert (at >= 0) == bool(fits)
                if fits:
                    assert (int(matcher.unit[at]), int(matcher.entry[at])) == (unit, max(fits)[3])


def test_matching_in_small_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_stories(5).tokens
    units = [[(i,), (None, i), (j, None, i)][:1] + [(j, i), (j, None, i)] for i in range(4, 9) for j in (4, 7)]
    whole = PatternMatcher(units).matches(tokens)
    monkeypatch.setattr("analyses.explain.patterns._PAIRS", 3)
    assert torch.equal(PatternMatcher(units).matches(tokens), whole)
    assert (whole >= 0).any()


def test_a_rule_is_simulated_as_worked_out_by_hand() -> None:
    a, b, cat, mark = ID[" A"], ID[" B"], ID[" cat"], ID['"']
    tokens = torch.tensor([[0, a, cat, b, mark, b, cat, 0]])
    found = simulate([explanation(PATTERNS), explanation(TREE, 1)], tokens, torch.tensor([7]), VOCABULARY)
    rest, one, full = 1.5 * 2 / 127, 1.5 * 60 / 127, 1.5
    torch.testing.assert_close(found[0, :, 0], torch.tensor([rest, rest, rest, full, rest, one, rest, 0]))
    inside, outside = 2 * 64 / 127, -2 * 3 / 127
    torch.testing.assert_close(found[0, :, 1], torch.tensor([outside, outside, 2.0, outside, inside, inside, 2.0, 0]))


def test_bounds_hold_what_is_simulated() -> None:
    simulator = RuleSimulator([explanation(PATTERNS), explanation(TREE)], VOCABULARY)
    torch.testing.assert_close(simulator.low, torch.tensor([1.5 * 2 / 127, -6 / 127]))
    torch.testing.assert_close(simulator.high, torch.tensor([1.5, 2.0]))


def test_what_says_nothing_of_where_it_fires_is_not_simulated() -> None:
    for rule in (OUTPUT, None):
        with pytest.raises(ValueError, match="only rules of patterns and trees are simulated; unit 0"):
            RuleSimulator([explanation(rule)])
    with pytest.raises(ValueError, match="needs the vocabulary"):
        simulate([explanation(TREE)], torch.zeros(1, 3, dtype=torch.long), torch.tensor([3]))


def test_lengths_are_those_of_the_stated_code() -> None:
    assert [gamma_bits(n) for n in (1, 2, 3, 4, 8)] == [1, 3, 3, 5, 7]
    # scale 32, default 8, count 2 + 1: 3; three places: 3 + 2 flags + two of 16 tokens: 8 + level 8; one: 1 + 4 + 8
    assert description_bits(PATTERNS, 16) == 32 + 8 + 3 + (3 + 2 + 8 + 8) + (1 + 4 + 8)
    # two splits (1 + 3 + 2 + 4 bits, 1 + 3), three leaves of 1 + 8
    assert description_bits(TREE, 16) == 32 + 10 + 4 + 3 * 9


@given(st.lists(st.tuples(pattern, st.integers(-127, 127)), max_size=30), pattern)
@settings(max_examples=50, deadline=None)
def test_another_entry_or_a_longer_pattern_takes_more_bits(entries: list[Any], one: Any) -> None:
    listed = [[list(tokens), level] for tokens, level in entries]
    bits = description_bits(patterns(1.0, 0, listed), 50)
    more = description_bits(patterns(1.0, 0, [*listed, [list(one), 3]]), 50)
    longer = description_bits(patterns(1.0, 0, [*listed, [[2, *one], 3]]), 50)
    assert bits < more < longer


def test_files_give_back_what_was_written(tmp_path: Path) -> None:
    made = [explanation(rule, i) for i, rule in enumerate((PATTERNS, TREE, OUTPUT, None))]
    save_explanations(made, tmp_path / "e.json")
    assert load_explanations(tmp_path / "e.json") == made


def nested(depth: int) -> Any:
    node: Any = 0
    for _ in range(depth):
        node = {"if": ["seen"], "then": node, "else": 0}
    return {"kind": "tree", "scale": 1.0, "root": node}


HOSTILE: list[Any] = [
    {"kind": "patterns", "scale": 1.0, "default": 0, "entries": [[[None], 3]]},
    {"kind": "patterns", "scale": 1.0, "default": 0, "entries": [[[], 3]]},
    {"kind": "patterns", "scale": 1.0, "default": 0, "entries": [[[1], 128]]},
    {"kind": "patterns", "scale": 1.0, "default": 0, "entries": [[[2**40], 1]]},
    {"kind": "patterns", "scale": 1.0, "default": 0, "entries": [[[1.5], 1]]},
    {"kind": "patterns", "scale": 1.0, "default": 0, "entries": [[[1] * 99, 1]]},
    {"kind": "patterns", "scale": 1.0, "default": True, "entries": []},
    {"kind": "patterns", "scale": -1.0, "default": 0, "entries": []},
    {"kind": "patterns", "scale": "1", "default": 0, "entries": []},
    {"kind": "patterns", "scale": 1.0, "default": 0, "entries": {}},
    {"kind": "patterns", "scale": 1.0, "default": 0, "entries": [], "more": 1},
    {"kind": "tree", "scale": 1.0, "root": {"if": ["__import__", "os"], "then": 1, "else": 0}},
    {"kind": "tree", "scale": 1.0, "root": {"if": ["token", 9, 1], "then": 1, "else": 0}},
    {"kind": "tree", "scale": 1.0, "root": {"if": ["class", 0, "no such"], "then": 1, "else": 0}},
    {"kind": "tree", "scale": 1.0, "root": {"if": 3, "then": 1, "else": 0}},
    {"kind": "tree", "scale": 1.0, "root": None},
    nested(13),
    {"kind": "output", "promoted": [[1]], "suppressed": []},
    {"kind": "eval", "code": "1"},
    [],
    "patterns",
]


@pytest.mark.parametrize("rule", HOSTILE)
def test_what_is_no_rule_is_refused_in_one_line(rule: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        checked_rule(rule)
    save_explanations([explanation(PATTERNS)], tmp_path / "e.json")
    document = json.loads((tmp_path / "e.json").read_text())
    document["explanations"][0]["rule"] = rule
    (tmp_path / "e.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="must hold explanations") as caught:
        load_explanations(tmp_path / "e.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"3",
        b'{"format": "sat_lens explanations 1"}',
        b'{"format": "sat_lens explanations 1", "explanations": [3]}',
        b'{"format": "sat_lens explanations 2", "explanations": []}',
        b'{"format": "sat_lens explanations 1", "explanations": [], "x": NaN}',
        b"[" * 200_000,
        b'{"format":"sat_lens explanations 1","explanations":[{"unit":true,"explainer":"a","text":"","rule":null,'
        b'"bits":1,"train_rows":""}]}',
        b'{"format":"sat_lens explanations 1","explanations":[{"unit":0,"explainer":"a","text":"","rule":null,'
        b'"bits":1e999,"train_rows":""}]}',
    ],
)
def test_what_is_no_file_of_explanations_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_bytes(content)
    with pytest.raises(ValueError, match="must hold explanations") as caught:
        load_explanations(tmp_path / "e.json")
    assert "\n" not in str(caught.value)


def test_the_limit_of_a_tree_is_its_depth() -> None:
    assert checked_rule(nested(12))["kind"] == "tree"


def test_output_weights_promote_what_they_point_at() -> None:
    """Writing token 3's own direction, less token 5's; the gain of the last norm turns a channel off."""
    unembedding = torch.eye(16, dtype=torch.float64)
    gain = torch.ones(16, dtype=torch.float64)
    gain[7] = 0
    model = SimpleNamespace(W_U=unembedding, ln_final=SimpleNamespace(w=gain))
    directions = torch.zeros(2, 16, dtype=torch.float64)
    directions[0, 3], directions[0, 5], directions[0, 7] = 2, -1, 9
    directions[1, 4] = 1
    first, second = output_explanations(directions, model, VOCABULARY, n=1)
    assert first.rule == {"kind": "output", "promoted": [[3, 2 - 1 / 16]], "suppressed": [[5, -1 - 1 / 16]]}
    assert first.text == 'Promotes "\\""; suppresses " B".'
    assert (second.unit, second.rule["promoted"][0][0], second.explainer) == (1, 4, "rules:output")
    with pytest.raises(ValueError, match="1 to 16 tokens; got 17"):
        output_explanations(directions, model, VOCABULARY, n=17)
