"""Configurations with an entry of the wrong type, size or name: refused in one line, or meant exactly as written."""

import copy
import json
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_lens import SelfAblation, files, load, save
from sat_lens.presets import TrainingSettings
from sat_lens.toy.config import ToyConfig
from tests.trust.oracle import drawn, outcome, sizes
from tests.trust.test_checkpoint_bytes import CONFIG, MANIFEST, assert_same_weights, assert_says_what_is_written

NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    5,
    2**31,
    2**63,
    10**30,
    -(10**30),
    10**400,
    0.0,
    0.5,
    -0.5,
    1e308,
    5e-324,
    1e999,
    -1e999,
    float("nan"),
)
WORDS = (
    "",
    "x",
    "none",
    "nan",
    "float16",
    "LN",
    "RMS",
    "LNPre",
    "relu",
    "rotary",
    "alibi",
    "../x",
    "\x00",
    "\ud800",
    "é" * 9,
)
OTHERS = (None, True, False, [], [1], [[]], {}, {"a": 1}, [None] * 3, ["global", "local"], {"": {}})
WRONG = (*NUMBERS, *WORDS, *OTHERS)
DELETE = object()


def places(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every entry of a JSON document."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    found = [(*at, key) for key, _ in inner]
    return found + [path for key, value in inner for path in places(value, (*at, key))]


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value there, or without the entry."""
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is DELETE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


def cases(content: Any, n: int, seed: int) -> list[tuple[tuple[Any, ...], Any]]:
    """`n` of all entries with all wrong values."""
    found = [(path, value) for path in places(content) for value in (*WRONG, DELETE)]
    return random.Random(seed).sample(found, min(n, len(found)))


@pytest.mark.parametrize("n", sizes(60, 2500))
def test_an_entry_of_a_checkpoint_s_configuration_that_is_wrong(small_model, tmp_path, tried, n):
    folder = save(small_model(), tmp_path / "checkpoint")
    original, written = load(folder), json.loads((folder / CONFIG).read_text())
    manifest, tokens = json.loads((folder / MANIFEST).read_text()), torch.tensor([[0, 3, 28, 5]])

    def loaded() -> Any:
        model = load(folder)
        model(tokens, stream="both" if model.ablation.mask != "none" else "clean")
        return model

    chosen = cases(written, n, seed=3)
    for path, value in chosen:
        (folder / CONFIG).write_text(json.dumps(changed(written, path, value)))
        manifest["sha256"][CONFIG] = files.sha256_file(folder / CONFIG)
        (folder / MANIFEST).write_text(json.dumps(manifest))
        case = f"{'.'.join(map(str, path))} = {'(deleted)' if value is DELETE else repr(value)}"
        found = outcome(loaded, case=case)
        if found.refusal is None:
            assert_same_weights(found.value, original, case)
            assert value is not DELETE or path[0] in ("training", "data", "versions") or path[-1] == "score_noise", case
            if value is not DELETE:
                assert_says_what_is_written(found.value, folder, case)
    tried("configurations, an entry wrong", len(chosen))


WILD = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.sampled_from((None, True, [], {}, [1])),
                 st.integers(), st.floats(), st.text(max_size=5))  # fmt: skip


def without_annotations(kind: Any, fields: dict[str, Any]) -> Any:
    """A dataclass of these fields, checked by itself alone: in tests, annotations are checked before."""
    made = object.__new__(kind)
    for name, value in {**vars(kind()), **fields}.items():
        object.__setattr__(made, name, value)
    made.__post_init__()
    return made


@pytest.mark.parametrize("kind", [SelfAblation, TrainingSettings, ToyConfig])
@pytest.mark.parametrize("n", sizes(40, 1000))
def test_a_configuration_takes_a_value_or_refuse_it(kind, n, tried):
    fields = sorted(kind.__dataclass_fields__)
    sane = kind()

    @drawn(n)
    @given(st.dictionaries(st.sampled_from(fields), WILD, min_size=1, max_size=3))
    def check(wild: dict[str, Any]) -> None:
        found = outcome(lambda: without_annotations(kind, wild), case=repr(wild))
        if found.refusal is None:
            for name, value in wild.items():
                kept, usual = getattr(found.value, name), getattr(sane, name)
                assert kept is value or kept == value
                numbers = isinstance(value, int | float) and isinstance(usual, int | float)
                assert isinstance(value, type(usual)) or numbers or usual is None, f"{name}: {value!r} was taken"
                assert isinstance(value, bool) == isinstance(usual, bool), f"{name}: {value!r} was taken"
                assert not numbers or abs(value) < float("inf"), f"{name}: {value!r} was taken"

    check()
    tried("configurations, an entry wrong", n)
