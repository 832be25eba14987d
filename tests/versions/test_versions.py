"""The lower bounds that a run with the lowest versions takes, and what is said of those it cannot."""

from pathlib import Path

import pytest

from tests.versions.lowest import bounds, pins, untried
from tests.versions.newer import changes

ROOT = Path(__file__).resolve().parents[2]


def pyproject(*lines: str) -> str:
    return f"[project]\ndependencies = {list(lines)}\noptional-dependencies = {{dev = ['PyTest>=8.3', 'a_b>=1,<2']}}\n"


def test_every_dependency_has_a_lower_bound_and_a_pin_at_or_above_it():
    lower = bounds((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pinned = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert {"torch", "transformer-lens", "pandas", "pytest", "sae-lens"} <= set(lower)
    for name, bound in lower.items():
        numbers = [[int(part) for part in text.split(".")] for text in (bound, pinned[name])]
        assert numbers[0] <= numbers[1], name


def test_bounds_are_read_with_extras_and_markers_and_upper_bounds():
    text = pyproject("torch>=2.6", "uvicorn[standard] >= 0.3, != 0.4", 'tomli>=2; python_version<"3.12"')
    assert bounds(text) == {"torch": "2.6", "uvicorn": "0.3", "tomli": "2", "pytest": "8.3", "a-b": "1"}
    with pytest.raises(ValueError, match=r"must have a lower bound.*got 'torch<3'"):
        bounds(pyproject("torch<3"))


def test_a_bound_that_something_else_raises_is_named():
    pinned = pins("# of today\na_B==1.0.0 # via x\ntorch==2.6.0+cpu\ntqdm==4.66.3 ; python_version > '3'\n")
    assert pinned == {"a-b": "1.0.0", "torch": "2.6.0+cpu", "tqdm": "4.66.3"}
    assert untried({"a-b": "1", "torch": "2.6"}, pinned) == []
    assert untried({"tqdm": "4.66", "gone": "2"}, pinned) == [
        "tqdm >= 4.66 could not be tried: 4.66.3 is the lowest that resolves",
        "gone >= 2 could not be tried: nothing is the lowest that resolves",
    ]


def test_what_is_newer_than_the_pins_is_listed():
    assert changes({"torch": "2.13.0", "numpy": "2.4.6", "gone": "1"}, {"torch": "2.15.0", "numpy": "2.4.6"}) == [
        "torch 2.13.0 -> 2.15.0"
    ]
    assert changes({"torch": "2.13.0"}, {"torch": "2.13.0+cpu"}) == []
