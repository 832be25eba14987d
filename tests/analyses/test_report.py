import base64
import dataclasses
import hashlib
import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from analyses import report
from analyses.figures import COLORS, figure
from analyses.masks import StoryMasks
from analyses.page import document, escaped, figure_html, keys_html, number, pairs_html, script_data, table_html
from analyses.report_page import Entry, report_html, tokens_seen
from analyses.result import Result
from sat_lens import SelfAblatingTransformer, SelfAblation, load_tokenizer, save
from sat_lens._tl import HookedTransformerConfig
from sat_lens.commands import run

PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><img src=https://evil.example/x onerror=alert(1)>",
    "\"><svg onload='alert(1)'>",
    "<a href=javascript:alert(1)>x</a>",
    "<!-- <script> -->",
    "\u2028\u2029\x00\x1b[0m\r\n\ud800'\"&",
]
ATTACK = "".join(PAYLOADS)


class Page(HTMLParser):
    """Scripts that a browser runs, and every attribute."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.blocks, self.attributes, self.tags, self._inside = [], [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "script":
            self._inside = self.blocks if dict(attrs).get("type") == "application/json" else self.scripts
            self._inside.append("")

    def handle_endtag(self, tag):
        if tag == "script":
            self._inside = None

    def handle_data(self, data):
        if self._inside is not None:
            self._inside[-1] += data


def assert_harmless(text, n_scripts=2):
    """Only our scripts, named by the policy; no handler; nothing is asked of a server."""
    page = Page(text)
    assert len(page.scripts) == n_scripts
    policy = next(
        value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "src" in value
    )
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    allowed = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert allowed == "script-src " + " ".join(f"'sha256-{value}'" for value in hashes)
    assert "default-src 'none'" in policy and "unsafe-inline" not in allowed
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    links = [value for _, name, value in page.attributes if name in ("src", "href", "action", "data", "srcset")]
    assert all(value.startswith("#") for value in links)
    assert not {"img", "svg", "iframe", "object", "embed", "base", "link", "form"} & set(page.tags)
    return page


def result(name):
    table = pd.DataFrame(
        {
            "kind": ["head", "head", "channel", "neuron"],
            "layer": [0, 0, 0, 0],
            "head": [1, 0, 1, None],
            "channel": [None, None, 7, None],
            "neuron": [None, None, None, 12],
            **dict.fromkeys(("effect_logit_diff", "effect_loss"), [2.0, -0.5, 0.25, 0.1]),
            **dict.fromkeys(("ci_low", "loss_ci_low"), [1.0, -0.6, 0.2, 0.0]),
            **dict.fromkeys(("ci_high", "loss_ci_high"), [3.0, -0.4, 0.3, 0.2]),
            "p_holm": 0.01,
            "n": 64,
        }
    ).astype(dict.fromkeys(("head", "channel", "neuron"), "Int64"))
    task = {"name": name, "n": 64, "accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95, "solved": True}
    gini = {"kind": "neuron", "metric": "gini", "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 64}
    knobs = {"ablation": "mean", "stream": "clean", "positions": "all"}
    meta = {"task": {**task, "logit_diff": 2.0}, "knobs": knobs, "concentration": [gini], "command": name}
    return Result("localization", table, {}, meta)


def entry(text, localization=None, gated=True):
    masks = torch.ones(1, 2, 1, 2, dtype=torch.bool)
    losses = torch.tensor([1.0, torch.nan])
    made = {
        "ablation": {"mask": "local", "k_attn": 2, "k_mlp": 3, "note": text},
        "model": {"act_fn": text},
        "versions": {"python": text},
        "checkpoint_sha256": "0" * 64,
        "checkpoint_sha256_of": text,
        **dict.fromkeys(("command", "date", "commit", "device", "dtype", "n_threads", "seed"), text),
    }
    return Entry(
        name=text,
        config={"training": {"seed": 3, "tokens_seen": 1000, "command": text}, "data": {"corpus": text}},
        held_out={"clean": 1.25, "ablated": 1.75},
        provenance=made,
        n_parameters=1234,
        n_gate_parameters=234,
        localization=result(text) if localization is None else localization,
        story=StoryMasks((text, text), losses, losses, masks, None) if gated else text,
    )


@pytest.mark.parametrize("payload", [*PAYLOADS, ATTACK])
def test_no_text_of_any_source_can_run_or_ask_a_server(payload):
    text = report_html([entry(payload), entry(payload, localization=payload, gated=False)])
    harmless = assert_harmless(text)
    plain = "\n" if "\n" in payload else "a"  # a line break is marked by a tag of its own
    assert harmless.tags == Page(report_html([entry(plain), entry(plain, localization=plain, gated=False)])).tags
    text.encode("utf-8")


def test_figures_come_out_of_their_data_blocks_as_they_went_in():
    drawn = go.Figure(go.Scatter(x=[0, 1], y=[0, 1], name=ATTACK.replace("\ud800", "")))
    page = assert_harmless(document("t", figure_html(drawn, "title", "caption")))
    (block,) = page.blocks
    assert "<" not in block and "\u2028" not in block
    shown = json.loads(block)["data"][0]["name"]
    assert html.unescape(shown) == html.unescape(drawn.data[0].name) and "<a" not in shown


def test_the_escapes_in_a_script_are_json_for_the_same_text():
    assert script_data('"</script>&\u2028"') == '"\\u003c/script\\u003e\\u0026\\u2028"'
    assert json.loads(script_data(json.dumps(ATTACK))) == ATTACK


def test_plotly_stands_in_the_page_once_and_not_at_all_without_a_figure():
    with_two = document("t", figure_html(go.Figure(), "a", "b") * 2)
    assert with_two.count("plotly.js v") == 1
    assert "plotly" not in document("t", "<p>nothing drawn</p>").lower()
    assert "script-src &#x27;none&#x27;" in document("t", "<p>nothing drawn</p>")


def test_a_figure_keeps_its_own_title_and_legend():
    drawn = go.Figure(go.Scatter(x=[0], y=[0], name="curve"), layout={"title": {"text": "own"}})
    page = figure_html(drawn, "title", "caption")
    assert drawn.layout.title.text == "own" and drawn.layout.showlegend is None
    assert "curve</span>" in page and "own" not in page


def test_the_legend_names_each_key_once_with_its_own_line_and_colour():
    drawn = figure(title="", x_title="", y_title="")
    drawn.add_scatter(name="dashed", line={"dash": "longdash", "color": "#123456"})
    drawn.add_scatter(name="again", showlegend=False)
    drawn.add_scatter(name="marks", mode="markers", marker={"color": "#abcdef"})
    drawn.add_scatter(name="dots", line={"dash": "dot"})
    keys = re.findall(r'border-top:3px (\w+) (#\w+)"></i>(\w+)', keys_html(drawn))
    assert keys == [("dashed", "#123456", "dashed"), ("solid", "#abcdef", "marks"), ("dotted", COLORS[3], "dots")]


def test_text_is_shown_and_what_cannot_be_shown_is_replaced():
    assert escaped('<b>"&') == "&lt;b&gt;&quot;&amp;"
    assert escaped("a\nb\tc\x7f\u2028\ud800") == "a↵\nb␉c\ufffd\ufffd\\ud800"


def test_numbers_have_commas_decimals_or_a_dash():
    assert [number(x) for x in (1234567, 0.5, None, float("nan"), pd.NA)] == ["1,234,567", "0.500", "–", "–", "–"]


def test_tables_hold_their_cells_as_text():
    assert "<td>&lt;i&gt;</td>" in table_html(["a"], [["<i>"]], "c")
    assert "<td>{&quot;k&quot;: [1]}</td>" in pairs_html("t", {"a": {"k": [1]}})


def test_the_page_says_what_is_known_of_a_checkpoint():
    text = report_html([entry("local-k4-s0")])
    row = re.search(r"<tbody><tr>(.*?)</tr>", text)[1]
    assert re.findall(r"<td>(.*?)</td>", row) == [
        "local-k4-s0", "local", "2", "3", "3", "1,234", "234", "1,000", "1.250", "1.750", "0.900 [0.800, 0.950]", "64",
    ]  # fmt: skip
    for expected in ("head 0.1", "channel 0.1.7", "neuron 0.12", "2.000 [1.000, 3.000]", "0.50 [0.40, 0.60]"):
        assert f"<td>{expected}</td>" in text
    assert "Mean ablation at all positions, clean stream, n = 64 prompts" in text


def test_a_checkpoint_that_does_not_solve_the_task_is_marked():
    unsolved = result("ioi")
    unsolved.meta["task"]["solved"] = False
    assert "does not solve the task" in report_html([entry("a", localization=unsolved)])
    assert "does not solve the task" not in report_html([entry("a")])


def test_held_out_losses_are_those_of_the_checkpoints_own_step():
    lines = [{"step": s, "held_out_clean": s / 10, "held_out_ablated": s / 5} for s in (10, 20, 30)]
    log = "\n".join(["not json", "[]", *map(json.dumps, lines), json.dumps({"step": 40, "clean": 1.0})])
    assert report.held_out_losses(log, {"training": {"step": 20}}) == {"clean": 2.0, "ablated": 4.0}
    assert report.held_out_losses(log, {}) == {"clean": 3.0, "ablated": 6.0}
    assert report.held_out_losses("", {}) == {}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A plain and a gated checkpoint of one layer, far too small to solve anything."""
    folder, tokenizer = tmp_path_factory.mktemp("checkpoints"), load_tokenizer("stories-4096")
    for name, mask in (("plain", "none"), ("gated", "local")):
        cfg = HookedTransformerConfig(
            n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=6, n_ctx=128, d_vocab=len(tokenizer), act_fn="gelu",
            normalization_type="LN", seed=0,
        )  # fmt: skip
        model = SelfAblatingTransformer(cfg, ablation=SelfAblation(mask=mask, k_attn=2, k_mlp=2))
        model.tokenizer = tokenizer
        log = json.dumps({"step": 5, "held_out_clean": 8.125, "held_out_ablated": 8.375})
        save(model, folder / name, training={"seed": 7, "tokens_seen": 4096, "step": 5}, log=log + "\n")
    return folder


def test_the_command_writes_one_page_and_uses_stored_localizations_again(checkpoints, tmp_path, capsys, monkeypatch):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text('Tom saw <script>alert(1)</script> and Lily said "</style>" to Tom.\n<|endoftext|>\n')
    argv = [str(checkpoints / "plain"), str(checkpoints / "gated"), "--out", str(tmp_path / "out"), "--n", "4",
            "--quiet", "--corpus", str(corpus)]  # fmt: skip
    report.main(argv)
    out, err = capsys.readouterr()
    page = tmp_path / "out" / "report.html"
    assert out == f"{page}\n" and err == ""
    text = page.read_text(encoding="utf-8")
    assert_harmless(text)
    assert "8.125" in text and "8.375" in text and "No masks: this checkpoint has no gates." in text
    assert "Tom saw" in re.sub(r"<[^>]*>", "", text)

    def computed_again(*args, **kwargs):
        raise AssertionError("a stored localization of the same weights is to be used")

    monkeypatch.setattr("analyses.localization.units.unit_effects", computed_again)
    monkeypatch.setattr("analyses.localization.unit_effects", computed_again, raising=False)
    report.main([*argv, "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert [row["checkpoint"] for row in printed["table"]] == ["plain", "gated"]
    assert [row["held_out_ablated"] for row in printed["table"]] == [None, 8.375]
    assert printed["table"][1]["seed"] == 7 and printed["table"][1]["n"] == 4
    assert list((tmp_path / "out").glob(".*")) == []


def test_a_stored_localization_of_other_weights_prompts_or_knobs_is_not_used(tmp_path):
    made = {"checkpoint_sha256": "a", "seed": 0}
    knobs = {**report.KNOBS, "mean_over": "task", "units": ["head", "channel", "neuron"]}
    shown = result("ioi")
    kept = {**shown.meta, **made, "task": {**shown.meta["task"], "n": 8}, "knobs": knobs}
    Result("localization", shown.table, {}, kept).save(tmp_path / "r")
    assert report.stored_localization(tmp_path / "r", made, 8) is not None
    assert report.stored_localization(tmp_path / "r", made, 9) is None
    assert report.stored_localization(tmp_path / "r", {**made, "checkpoint_sha256": "b"}, 8) is None
    assert report.stored_localization(tmp_path / "r", {**made, "seed": 1}, 8) is None
    Result("localization", pd.DataFrame({"a": [1]}), {}, kept).save(tmp_path / "damaged")
    assert report.stored_localization(tmp_path / "damaged", made, 8) is None, "it cannot be shown, and is made again"
    zero = {**kept, "knobs": {**knobs, "ablation": "zero"}}
    Result("localization", shown.table, {}, zero).save(tmp_path / "zero")
    assert report.stored_localization(tmp_path / "zero", made, 8) is None
    assert report.stored_localization(tmp_path / "nowhere", made, 8) is None


def test_a_story_too_long_for_the_context_is_passed_over_and_never_cut(checkpoints):
    from sat_lens import load

    model = load(checkpoints / "gated")
    long, short = "Tom ran. " * 100, "Lily sat."
    assert "".join(report.story(model, [long, short]).tokens[1:]) == short
    with pytest.raises(ValueError, match="none of the first 1 stories fits the context of 128"):
        report.story(model, [long])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["no-such-checkpoint"], "no-such-checkpoint"),
        ([], "CKPT"),
        (["a", "--n", "0"], "at least 1"),
        (["a", "b/a"], "a"),
    ],
)
def test_bad_input_ends_in_one_line_and_exit_2(argv, expected, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(report.main, [*argv, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and expected in error
    assert not (tmp_path / "out").exists()


def test_help_imports_nothing_heavy():
    code = "import sys, analyses.report as r\ntry: r.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'plotly', 'pandas', 'transformer_lens'} & set(sys.modules)))"
    root = Path(report.__file__).parent.parent
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_specialization_found_is_shown_as_text(tmp_path):
    text = ATTACK.replace("\ud800", "")  # no table of texts can hold it
    mean = {"kind": text, "stream": "clean", "layer": -1, "metric": "information share", "target": "role",
            "against": text, "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "null": 0.25, "excess": 0.25,
            "n_units": 7}  # fmt: skip
    knobs = {"stream": text, "n_stories": 9}
    meta = {"means": [mean, mean | {"layer": 0}], "knobs": knobs, "summary": text}
    selectivity = Result("specialization", pd.DataFrame({"a": [1]}), {}, meta)
    score = {"explainer": text, "layer": -1, "value": 0.4, "ci_low": 0.3, "ci_high": 0.5, "floor_shuffled": 0.1,
             "n_units": 7}  # fmt: skip
    published = {"mean": 0.405, "by_layer": [0.4], "n_units": 1, "model": text, "explainer": text, "note": text}
    scored = {"means": [score, score | {"layer": 0}], "coverage": {text: {"by_count": 0.5}}, "published": published}
    scores = Result("explainability", pd.DataFrame({"a": [1]}), {}, scored)
    known = dataclasses.replace(entry("a"), specialization=selectivity, explainability=scores)
    page = report_html([known])
    assert_harmless(page)
    assert "0.250 [0.150, 0.350]" in page and "0.400 [0.300, 0.500]" in page
    made = {"checkpoint": "c", "checkpoint_sha256": "a"}
    with pytest.raises(ValueError, match="analyses.specialization c --explain makes one"):
        report.stored_specialization(tmp_path / "c.explained", made)


def test_tokens_of_earlier_runs_are_counted():
    assert tokens_seen({"tokens_seen": 12, "tokens_seen_before": 18}) == 30
    assert tokens_seen({"tokens_seen": 12, "tokens_seen_before": None}) == 12 and tokens_seen({}) is None


def probed(text):
    """Two sites and a mask of one label, named by `text`, with and without controls and erasure."""
    estimates = ("accuracy", "selectivity", "compression", "loss_rise", "rise_beyond_random")
    ends = {"": 0.75, "_low": 0.5, "_high": 0.875}
    row = {"target": text, "site": text, "layer": 0, "stream": text, "probe": "linear", "k": 16.0, "n_units": 16.0,
           "majority": 0.5, "untrained": 0.6, "k_90": 2.0,
           **{f"{name}{end}": value for name in estimates for end, value in ends.items()}}  # fmt: skip
    sparse = {**row, "probe": "sparse", "k": 1.0, "random_units": 0.5}
    worse = {**row, "site": "blocks.1.mlp.hook_post", "layer": 1, "accuracy": 0.625, "k_90": float("nan")}
    asked_less = {**{key: worse[key] for key in ("site", "layer", "stream", "probe", "k", "n_units", "accuracy",
                     "accuracy_low", "accuracy_high", "majority", "compression", "compression_low",
                     "compression_high")}, "target": "other_label"}  # fmt: skip
    knobs = {"n_stories": 9, "per_story": 16, "folds": 5, "stream": text}
    kinds = {text: {"classes": {text: 4, "b": 6}}}
    return Result("probing", pd.DataFrame([row, worse, asked_less, sparse]), {},
                  {"summary": f"{text}\n{text}", "knobs": knobs, "targets": kinds})  # fmt: skip


def repaired(text):
    row = {
        "component": text, "layer": 0, "depth": 0.0, "kind": "head", "head": 0, "n_tokens": 5, "de": 1.5,
        "dlogit": -1.0, "self_repair": 0.5, "ci_low": 0.25, "ci_high": 0.75, "ln_own": 0.125, "p_holm": 0.01,
        "zone": text, **dict.fromkeys(("sr_heads", "sr_mlps", "sr_ln", "sr_gate"), 0.25),
    }  # fmt: skip
    knobs = {"ln_order": text, "stream": text, "masks": text, "selection": text, "ablation": text, "n_stories": 9,
             "components": text}  # fmt: skip
    shown = {key: [[0.5, None]] for key in ("self_repair", "removed", "dlogit")}
    texts = {"component": text, "stories": [[text, text]], **shown}
    meta = {"summary": text, "knobs": knobs, "n_measured": 5, "texts": texts, "halves": {}}
    return Result("self_repair", pd.DataFrame([row, {**row, "n_tokens": 0, "component": "silent"}]), {}, meta)


def test_what_probing_and_self_repair_found_is_shown_as_text():
    text = ATTACK.replace("\ud800", "")  # no table of texts can hold it
    page = report_html([dataclasses.replace(entry("a"), probing=probed(text), self_repair=repaired(text))])
    assert_harmless(page)
    cells = re.findall(r"<td>(.*?)</td>", page[page.index("What can be read where") :], re.DOTALL)
    assert cells[2:10] == [
        "0.750 [0.500, 0.875]", "0.500", "0.75 [0.50, 0.88]", "0.600", "0.75 [0.50, 0.88]", "2 of 16",
        "0.75", "0.75 [0.50, 0.88]",
    ]  # fmt: skip
    assert cells[10:20] == [
        "other label", "blocks.1.mlp.hook_post", "0.625 [0.500, 0.875]", "0.500", "–", "–", "0.75 [0.50, 0.88]", "–",
        "–", "–",
    ]  # fmt: skip
    assert "2 classes, 10 tokens" in page and "0.50 [0.25, 0.75]" in page and ">silent<" not in page
    without = report_html([entry("a")])
    assert without.count("Not known: it was not asked.") == 6


@pytest.mark.parametrize("question", ["probing", "self_repair"])
def test_a_stored_answer_is_shown_where_it_is_of_the_same_weights(question, tmp_path):
    read = {"probing": report.stored_probing, "self_repair": report.stored_self_repair}[question]
    found = {"probing": probed, "self_repair": repaired}[question]("c")
    made = {"checkpoint": "c", "checkpoint_sha256": "a"}
    with pytest.raises(ValueError, match=f"no result is in {question}/c; python -m analyses.{question} c makes one"):
        read(tmp_path / question / "c", made)
    dataclasses.replace(found, meta={**found.meta, "checkpoint_sha256": "a"}).save(tmp_path / question / "c")
    assert read(tmp_path / question / "c", made).meta["summary"] == found.meta["summary"]
    with pytest.raises(ValueError, match="is of other weights"):
        read(tmp_path / question / "c", {**made, "checkpoint_sha256": "b"})
    Result("study", found.table, {}, {"checkpoint_sha256": "a"}).save(tmp_path / question / "c")
    with pytest.raises(ValueError, match="no result is in"):
        read(tmp_path / question / "c", made)
