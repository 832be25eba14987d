"""What is stored and read again, with text that attacks in every place: the report, tables and figures stay harmless.

A payload in the place of one value either leaves the page's tags as they are, or that part of the page says that it
cannot be shown.
"""

import contextlib
import copy
import dataclasses
import random
import re
import shutil
from collections import Counter
from functools import reduce
from html.parser import HTMLParser
from importlib import import_module
from operator import getitem
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

from analyses import report_page
from analyses.figures import harmless, write_figure
from analyses.page import figure_html
from analyses.paper.tables import paper_page, write_tables
from analyses.result import Result
from tests.analyses.test_report import entry, probed, repaired
from tests.analyses.test_report import result as localized

ADDRESS = "http://127.0.0.1:9/asked"
DO = "document.documentElement.dataset.ran=1"


def payload(address: str) -> str:
    return (
        f"</script></style></title></textarea>--><script>{DO}</script>\"'><img src={address} onerror={DO}>"
        f"<meta http-equiv=refresh content='0;url={address}'><a href='{address}'>x</a>"
        "<span style='color:red'>y</span>%{x}"
    )


PAYLOAD = payload(ADDRESS)
KEPT = Path(__file__).parents[2] / "data" / "results" / "paper"
ATTRIBUTES = {
    "align", "aria-hidden", "charset", "class", "content", "cx", "cy", "d", "dir", "fill", "for", "height", "hidden",
    "href", "http-equiv", "id", "lang", "name", "open", "opacity", "points", "r", "role", "scope", "stroke",
    "stroke-dasharray",
    "stroke-opacity", "stroke-width", "style", "text-anchor", "title", "transform", "type", "viewbox", "width", "x",
    "x1", "x2", "xmlns", "y", "y1", "y2",
}  # fmt: skip
"""That our pages use; none of them runs a script, and `href` is of a place on the page."""


class Page(HTMLParser):
    """How often each tag stands with which attributes; every figure's texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[Any] = Counter()
        self.wrong: list[Any] = []
        self.figures = re.findall(r'class="figure">(.*?)</script>', text)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag, *sorted(name for name, _ in attrs)] += 1
        for name, value in attrs:
            place = name != "href" or (value or "").startswith("#")
            asks = name == "style" and re.search(r"url|expression|@import", value or "")
            if name not in ATTRIBUTES or not place or asks or ADDRESS in (value or "") and name != "title":
                self.wrong.append((tag, name, value))


def assert_harmless(text: str, than: Page | None = None, case: Any = "") -> Page:
    page = Page(text)
    assert not set(page.wrong) - set(than.wrong if than else ()), (case, page.wrong[:3])
    grown = {tag[0] for tag in page.tags - than.tags} if than else set()
    assert not grown & {"script", "img", "meta", "a", "style", "title", "iframe", "svg", "link"}, (case, grown)
    for figure in page.figures:
        assert not re.search(r"\\u003c(?!(\\u002f|/)?(b|br|i|sub|sup|extra)\b)|<", figure), (
            case,
            "a tag that Plotly reads",
        )
    return page


def places(value: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """Of every value in JSON, by its path with `*` for an index: the first path of that kind."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        return {tuple("*" if isinstance(part, int) else part for part in path): path}
    found: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for key, one in inner:
        found = {**places(one, (*path, key)), **found}
    return found


def poisoned(result: Result, place: tuple[Any, ...] | str) -> Result:
    """A payload in one place of the meta, or in the first cell of a column."""
    meta, table = copy.deepcopy(result.meta), result.table
    if isinstance(place, str):
        table = table.astype({place: object})
        table.loc[table.index[0], place] = PAYLOAD
    else:
        inside = meta
        for part in place[:-1]:
            inside = inside[part]
        inside[place[-1]] = PAYLOAD
    return Result(result.name, table, {}, meta)


def is_text(result: Result, place: tuple[Any, ...] | str) -> bool:
    """Whether what stands in a place is text, so that a page that shows it can show any."""
    value = result.table[place].iloc[0] if isinstance(place, str) else reduce(getitem, place, result.meta)
    return isinstance(value, str)


def read_again(result: Result, folder: Path) -> Result:
    result.save(folder)
    return Result.load(folder)


@pytest.mark.parametrize("made", [localized, probed, repaired])
def test_a_payload_in_the_place_of_any_value_adds_nothing_to_the_page(made, tmp_path, tried):
    html, result = getattr(report_page, f"{PARTS[made]}_html"), made("role")
    intact, drawn = Page(report_page.part_html(result, html, "None")), []
    cases = [*places(result.meta).values(), *result.table.columns]
    for place in cases:
        shown = report_page.part_html(read_again(poisoned(result, place), tmp_path / "r"), html, "None")
        assert_harmless(shown, intact, place)
        drawn += ["cannot be shown" not in shown] if is_text(result, place) else []
    assert not intact.wrong and sum(drawn) > len(drawn) / 2, f"{sum(drawn)} of {len(drawn)} texts were drawn"
    tried("stored results with a payload", len(cases))


PARTS = {localized: "localization", probed: "probing", repaired: "self_repair"}


def test_a_checkpoint_s_configuration_written_by_hand_is_harmless_and_its_odd_values_are_left_out():
    odd = entry("a")
    for value in (PAYLOAD, [PAYLOAD], {PAYLOAD: PAYLOAD}, 1 << 70, True, 1.5):
        odd.config["training"] = {"seed": value, "tokens_seen": value, "tokens_seen_before": value, PAYLOAD: value}
        page = report_page.report_html([odd])
        assert_harmless(page.replace(page[page.index("</main>") :], ""))
        row = report_page.checkpoints_result([odd]).table.iloc[0]
        assert pd.isna(row.seed) and pd.isna(row.tokens_seen)


@pytest.mark.parametrize("n", [pytest.param(10, id="few"), pytest.param(400, id="many", marks=pytest.mark.slow)])
def test_the_paper_of_stored_results_is_harmless(n, tmp_path, tried):
    stored, choice = Result.load(KEPT), random.Random(0)
    result = Result(
        stored.name, stored.table, {}, {key: stored.meta.get(key) for key in ("claims", "reproduce", "short")}
    )
    intact, shown = Page(body(paper_page(result).document)), 0
    cases = [*places(result.meta["claims"]).values()]
    cases = [("claims", *path) for path in cases] + [*result.table.columns, ("short",), ("reproduce",)]
    for place in choice.sample(cases, min(n, len(cases))):
        try:
            one = poisoned(result, place)
            if place == ("short",):
                one.meta.update(reproduce=True, short=[PAYLOAD])
            page = paper_page(one).document
        except report_page.NO_SUCH_RESULT:
            continue
        shown += 1
        assert_harmless(body(page), intact, place)
        write_tables(one, tmp_path)
        for path in tmp_path.glob("*.tex"):
            assert not re.search(r"(?<!\\)[#$]|(?<!\\)\\(input|write|immediate)", path.read_text()), (place, path.name)
    assert shown > min(n, len(cases)) / 3
    tried("stored results with a payload", shown)


def body(page: str) -> str:
    return page[page.index("<body>") : page.index("</main>")]


def test_a_figure_s_texts_bring_no_links_and_no_styles(tmp_path):
    frame = pd.DataFrame({"text": [PAYLOAD, "b"], "n": [1, 2]})
    drawn = go.Figure(go.Scatter(x=[PAYLOAD, "b"], y=[1, 2], name=PAYLOAD, text=frame.text, customdata=frame))
    drawn.update_layout(title=f"<b>{PAYLOAD}</b><br>two", xaxis={"ticktext": [PAYLOAD], "tickvals": [0]})
    drawn.add_annotation(text=PAYLOAD)
    told = harmless(drawn)
    assert told.layout.title.text.startswith("<b>&lt;/script>") and told.layout.title.text.endswith("</b><br>two")
    assert told.data[0].customdata[0][0] == told.data[0].name == told.data[0].x[0] == PAYLOAD.replace("<", "&lt;")
    assert told.data[0].customdata[1] == ["b", 2] and drawn.data[0].name == PAYLOAD, "the figure is left as it is"
    assert_harmless(figure_html(drawn, PAYLOAD, PAYLOAD))
    write_figure(drawn, tmp_path / "f.html")
    page = (tmp_path / "f.html").read_text(encoding="utf-8")
    assert page.index("default-src &#x27;none&#x27;") < page.index("<script")
    data = page[page.rindex("Plotly.newPlot(") :]
    assert not re.search(r"(<|\\u003c)(a|span|img|meta)\b", data)


N_PLACES = 25
"""Of each result, in which a payload is put."""
ASKED = {
    "localization": ("localization --n 4 --out {out}", "localization/ck"),
    "circuit": (
        "localization --method eap-ig --n 4 --steps 2 --no-checks --force --out {out}",
        "localization/ck.eap-ig",
    ),
    "leakage": ("leakage --quick --n 6 --out {out}", "leakage/ck"),
    "specialization": ("specialization --quick --n 8 --draws 2 --out {out}", "specialization/ck"),
    "explainability": ("specialization --quick --n 8 --explain --out {out}", "specialization/ck.explained"),
    "probing": ("probing --n 8 --folds 3 --target position --no-erasure --out {out}", "probing/ck"),
    "self_repair": ("self_repair --tokens 200 --out {out}", "self_repair/ck"),
    "rewriting": ("rewriting --quick --n 24 --layer 0 --no-pages --out {out}", "rewriting/ck.L0.quick"),
}


def answers(folder: Path) -> dict[str, Result]:
    """What each question says of a tiny model, read again."""
    from sat_lens import SelfAblatingTransformer, SelfAblation, load_tokenizer, save
    from sat_lens._tl import HookedTransformerConfig

    size = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "d_mlp": 6, "n_ctx": 64, "d_vocab": 4096}
    cfg = HookedTransformerConfig(**size, act_fn="gelu", normalization_type="LN", seed=0, device="cpu")
    model = SelfAblatingTransformer(cfg, ablation=SelfAblation(mask="local", k_attn=2, k_mlp=2))
    model.tokenizer = load_tokenizer("stories-4096")
    save(model, folder / "ck")
    for command, _ in ASKED.values():
        question, *flags = command.format(out=folder / "out").split()
        import_module(f"analyses.{question}.__main__").main([str(folder / "ck"), *flags, "--quiet"])
    return {field: Result.load(folder / "out" / place) for field, (_, place) in ASKED.items()}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to show the pages")
def test_the_whole_report_of_hostile_results_runs_and_fetches_nothing(server, tmp_path, monkeypatch, tried):
    """Every part from its own question's answer, with a payload in every place where the part is still drawn."""
    from tests.trust.test_hostile_text import browsed

    address, asked = server[0] + "/asked", server[1]
    monkeypatch.setitem(globals(), "ADDRESS", address)
    monkeypatch.setitem(globals(), "PAYLOAD", payload(address))
    choice, n, known = random.Random(0), 0, {}
    for field, result in answers(tmp_path).items():
        html = getattr(report_page, f"{field}_html")
        intact, spread = Page(html(result)), result
        for place in choice.sample([*places(result.meta).values(), *result.table.columns], N_PLACES):
            assert_harmless(report_page.part_html(poisoned(result, place), html, "None"), intact, (field, place))
            n += 1
            with contextlib.suppress(*report_page.NO_SUCH_RESULT):
                html(both := poisoned(spread, place))
                spread = both
        known[field] = spread
    page = tmp_path / "report.html"
    page.write_text(report_page.report_html([dataclasses.replace(entry(PAYLOAD), **known)]), encoding="utf-8")
    seen = browsed(page, tmp_path / "profile")
    assert not re.search(r"<html[^>]*data-ran", seen) and seen.count("js-plotly-plot") >= 8
    assert not asked, f"requests left: {asked[:3]}"
    assert ADDRESS in seen and f'href="{ADDRESS}' not in seen and f'src="{ADDRESS}' not in seen
    assert "cannot be shown" not in seen
    tried("stored results with a payload", n)
