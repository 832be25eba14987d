"""The page of units: what it holds is text, whatever the tokens are, and a browser shows it so."""

import base64
import hashlib
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analyses.explain import Vocabulary
from analyses.labels import Labels
from analyses.result import Result
from analyses.specialization.explainability import explainability
from analyses.specialization.explained import explained_units
from analyses.specialization.logit_weights import logit_weights
from analyses.specialization.neuron_page import shown, units_page
from analyses.specialization.page_script import SCRIPT
from analyses.specialization.selectivity import unit_selectivity
from analyses.specialization.unit_pages import LISTS, unit_pages
from tests.cases.fixed_neurons import FIRES_ON, POS, V, fixed_model, fixed_stories

HOSTILE = (
    "</script><script>document.title = 'ran'</script>",
    "<img src=x onerror=alert(1)>",
    "\"'`&${1}<!-- <script>",
    "\u202e\u2066evil\u200b",
    "\u2028\x00\r\n\t",
    "constructor",
    "</style></noscript><b>",
    " plain",
)
"""Texts of the eight tokens."""


class Parsed(HTMLParser):
    """Tags, attributes, and what stands in scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self._type: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._type = dict(attrs).get("type", "run") if tag == "script" else None
        if tag == "script":
            self.scripts.append((str(self._type), ""))

    def handle_endtag(self, tag: str) -> None:
        self._type = None

    def handle_data(self, data: str) -> None:
        if self._type:
            self.scripts[-1] = (self._type, self.scripts[-1][1] + data)


@pytest.fixture
def pages(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> Result:
    """Of the planted model, its tokens named as badly as can be."""
    hostile = Vocabulary(HOSTILE)
    monkeypatch.setattr(Vocabulary, "of", staticmethod(lambda tokenizer, n: hostile))
    model, stories = fixed_model(tiny_model), fixed_stories()
    labels = [
        Labels("current_token", HOSTILE, stories.tokens, "tokens"),
        Labels("position", ("early", "late"), (stories.tokens * 0 + (stories.tokens.cumsum(1) > 20)).long(), "tokens"),
    ]
    selectivity = unit_selectivity(model, stories, labels, n_draws=3)
    explained = explained_units(model, stories, rules=["token"])
    scores = explainability(explained, n_resamples=10)
    return unit_pages(selectivity, scores, explained, logit_weights(model, explained.units))


def test_the_table_holds_a_units_examples_measures_and_explanation(pages: Result, tmp_path: Path):
    pages.save(tmp_path)
    loaded = Result.load(tmp_path)
    assert units_page(loaded).document == units_page(pages).document
    rows = loaded.table.set_index("unit")
    tokens = fixed_stories().tokens.tolist()
    for (layer, neuron), token in FIRES_ON.items():
        row = rows.loc[f"L{layer}.N{neuron}"]
        assert row.target == "current_token" and row.label == HOSTILE[token] and row.maximum == 2
        for at, ids, levels in json.loads(row.top):
            assert ids[at] == token and levels == [100 * (i == token) for i in ids]
            assert any(story[i : i + len(ids)] == ids for story in tokens for i in range(POS))
        windows = [json.dumps(ids) for _, ids, _ in json.loads(row.top)]
        assert len(set(windows)) == len(windows) > 3
        assert all(levels[at] == 0 for at, _, levels in json.loads(row.near))
        assert json.loads(row.promoted)[0] == (4 if layer == 0 else 7)
        assert json.loads(row.explanations)[0][3] == pytest.approx(1.0)
        assert {line[0] for line in json.loads(row.measures)} >= {"mutual information", "usage", "logit kurtosis"}
    dead = rows.loc["L0.N2"]
    assert json.loads(dead.top) == [] and dead.live == 0 and pd.isna(dead.r)
    assert set(json.loads(rows.loc["L0.N3"].spread)[0][2]) == {100}
    assert set(LISTS) <= set(rows.columns) and set(loaded.meta["vocabulary"]) == {str(i) for i in range(V)}


def test_no_token_can_end_the_block_of_data_or_run(pages: Result):
    document = units_page(pages).document
    page = Parsed(document)
    kinds = [kind for kind, _ in page.scripts]
    assert kinds == ["application/json", "run"]
    block, script = (text for _, text in page.scripts)
    assert script == SCRIPT and not set("<>&\u2028\u202e\u200b") & set(block)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(
        value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "src" in value
    )
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    assert not {"img", "iframe", "object", "link", "form", "b"} & set(page.tags)
    data = json.loads(block)
    assert data["vocabulary"]["0"] == HOSTILE[0] and data["vocabulary"]["3"] == "\\u202e\\u2066evil\\u200b"
    assert {unit["unit"] for unit in data["units"]} == set(pages.table.unit)


def test_a_page_of_too_many_units_shows_fewer_examples_then_fewer_units_and_says_so(pages: Result, monkeypatch: Any):
    def held(largest: int) -> tuple[str, int, list[dict[str, Any]]]:
        monkeypatch.setattr("analyses.specialization.neuron_page.LARGEST", largest)
        document = units_page(pages).document
        block = next(text for kind, text in Parsed(document).scripts if kind == "application/json")
        assert len(block) <= largest + 700  # what stands around the units
        return document, len(block), json.loads(block)["units"]

    document, size, every = held(10**7)
    assert "to keep the file below" not in document and len(every) == 8
    n_examples = max(len(unit["top"]) for unit in every)
    document, _, fewer = held(size - 1500)
    assert f"at most {n_examples // 2} examples of a list; table.csv has all" in document and len(fewer) == 8
    assert [unit["top"] for unit in fewer] == [unit["top"][: n_examples // 2] for unit in every]
    assert max(len(unit["near"]) for unit in fewer) <= n_examples // 2
    document, _, few = held(3000)
    assert f"at most 1 examples of a list and the {len(few)} of 8 units that are explained best" in document
    assert 0 < len(few) < 8 and {unit["unit"] for unit in few} <= {f"L{i}.N{j}" for i, j in FIRES_ON}


def test_the_script_writes_no_markup():
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "fetch("):
        assert way not in SCRIPT


def test_nothing_stays_unseen():
    assert shown("a\nb\tc") == "a↵b⇥c"
    assert shown("\u202e\u200f\ufeff\xad") == "\\u202e\\u200f\\ufeff\\u00ad"
    assert shown("\x00") == "\u2400" and shown("\ud800") == "\\ud800" and shown("naïve") == "naïve"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to show the page")
@pytest.mark.slow
def test_a_browser_shows_a_unit_and_runs_no_token(pages: Result, tmp_path: Path):
    (tmp_path / "units.html").write_text(units_page(pages).document, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    command = ["chromium", *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000"]
    command += ["--dump-dom", f"{(tmp_path / 'units.html').as_uri()}#L0.N0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    page = Parsed(done.stdout)
    assert "<h2>L0.N0</h2>" in done.stdout and "ran</title>" not in done.stdout
    assert [kind for kind, _ in page.scripts] == ["application/json", "run"]
    assert not {"img", "b"} & set(page.tags)
    assert "&lt;img src=x onerror=alert(1)&gt;" in done.stdout
