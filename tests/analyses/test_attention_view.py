"""The patterns shown are the model's, of the heads of the circuit; tokens are text, and only two scripts may run."""

import base64
import dataclasses
import hashlib
import html
import json
import re

import numpy as np
import pytest
import torch

from analyses.localization.attention_view import (
    DRAW,
    attention_data,
    attention_page,
    strongest_heads,
)
from analyses.localization.circuit import Circuit
from analyses.localization.graph import Graph
from analyses.page import circuitsvis_bundle
from analyses.result import Result
from sat_lens.tasks.encoding import task_from_ids

BUNDLE = "var CircuitsVis = {};"
HOSTILE = "</script><script>alert(1)</script><!--"
PROMPTS = [
    {
        "tokens": ["<|endoftext|>", " Ann", HOSTILE],
        "answer": " Bob",
        "wrong_answer": "\udcff<img src=x>",
        "patterns": {"a0.h1": [[1.0], [0.25, 0.75], [0.1, 0.2, 0.7]], "a1.h0": [[1.0], [0.5, 0.5], [0.9, 0.1, 0.0]]},
    }
]


def result_of(edges, graph=None, **meta):
    graph = graph or Graph(2, 2, 2, True, False)
    scores, members = np.where(graph.possible, 0.0, np.nan), np.zeros_like(graph.possible)
    for name, score in edges.items():
        scores[graph.edge(name)], members[graph.edge(name)] = score, score != 100
    meta = {"graph": dataclasses.asdict(graph), **meta}
    return Result("localization", Circuit(graph, scores, members).table(), {"score": "logits"}, meta)


@pytest.fixture
def task():
    rows = [[0, 3, 5, 7], [0, 2, 9], [0, 1, 1, 1]]
    return task_from_ids("t", rows, rows, [(4, 5), (6, 7), (8, 9)], {}, [])


def test_patterns_are_those_of_the_model(tiny_model, task, tiny_tokenizer):
    model = tiny_model(normalization_type="RMS")
    model.tokenizer = tiny_tokenizer
    first, second = attention_data(model, task, ["a1.h3", "a0.h0"])
    assert first["tokens"] == ["<|endoftext|>", "w3", "w5", "w7"] and second["tokens"] == ["<|endoftext|>", "w2", "w9"]
    assert (second["answer"], second["wrong_answer"]) == ("w6", "w7")
    for row, prompt in enumerate((first, second)):
        n = len(prompt["tokens"])
        _, cache = model.run_with_cache(task.clean[row : row + 1, :n])
        assert list(prompt["patterns"]) == ["a1.h3", "a0.h0"]
        for name, (layer, head) in {"a1.h3": (1, 3), "a0.h0": (0, 0)}.items():
            q, k = (cache[f"blocks.{layer}.attn.hook_{x}"][0, :, head] for x in "qk")
            scores = (q @ k.T / model.blocks[layer].attn.attn_scale).masked_fill(~torch.ones(n, n).tril().bool(), -1e9)
            found = prompt["patterns"][name]
            assert [len(x) for x in found] == list(range(1, n + 1))
            for i, expected in enumerate(scores.softmax(-1)):
                np.testing.assert_allclose(found[i], expected[: i + 1].detach(), atol=5.01e-4)
    assert json.loads(json.dumps([first, second])) == [first, second]


def test_a_model_without_a_tokenizer_shows_ids(tiny_model, task):
    (prompt,) = attention_data(tiny_model(), task, ["a0.h0"], n_prompts=1)
    assert prompt["tokens"] == ["0", "3", "5", "7"] and prompt["answer"] == "4"


@pytest.mark.parametrize(
    ("heads", "n_prompts", "why"),
    [
        (["a2.h0"], 1, "up to a1.h3; got 'a2.h0'"),
        (["a0.h4"], 1, "up to a1.h3"),
        (["m0"], 1, "named as a0.h1"),
        (["a0.h0\n"], 1, "named as a0.h1"),
        ([], 1, "got 0 heads"),
        (["a0.h0"], 0, "0 prompts"),
    ],
)
def test_what_is_no_head_of_the_model_is_refused(tiny_model, task, heads, n_prompts, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        attention_data(tiny_model(), task, heads, n_prompts=n_prompts)


def test_the_strongest_heads_are_those_whose_edges_of_the_circuit_have_the_largest_scores():
    edges = {
        "input->a0.h0<q>": 1.0, "a0.h0->m0": -2.0, "a0.h0->a1.h1<v>": 0.5,  # a0.h0: 3.5
        "a1.h1->logits": 4.0,  # a1.h1: 4.5
        "a0.h1->logits": 100,  # not in the circuit
        "input->m0": 50.0,
    }  # fmt: skip
    assert strongest_heads(result_of(edges)) == ["a1.h1", "a0.h0"]
    assert strongest_heads(result_of(edges), most=1) == ["a1.h1"]


def test_an_edge_into_a_shared_key_counts_for_each_head_that_shares_it():
    edges = {"input->a0.h0<k>": 2.0, "a0.h1->logits": 1.0}
    assert strongest_heads(result_of(edges, Graph(1, 2, 1, True, False))) == ["a0.h1", "a0.h0"]


def data_blocks(text):
    blocks = re.findall(r'<script type="application/json" class="attention">(.*?)</script>', text)
    return [json.loads(block) for block in blocks]


def test_circuitsvis_is_given_the_patterns_as_squares_and_the_tokens_as_text():
    page = attention_page(result_of({}, attention=PROMPTS, method="acdc"), BUNDLE).document
    (block,) = data_blocks(page)
    assert block["names"] == ["a0.h1", "a1.h0"] and block["tokens"] == PROMPTS[0]["tokens"]
    assert block["patterns"][0] == [[1, 0, 0], [0.25, 0.75, 0], [0.1, 0.2, 0.7]]
    assert "<title>Attention of the heads found: acdc</title>" in page
    assert "a1.h0</td><td>&#x27;&lt;|endoftext|&gt;&#x27; (0) 0.90, &#x27; Ann&#x27; (1) 0.10" in page


def test_two_scripts_may_run_and_nothing_of_the_data_is_one():
    page = attention_page(result_of({}, attention=PROMPTS, method=HOSTILE), BUNDLE).document
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    allowed = set(re.findall(r"sha256-([^']+)'", policy))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert scripts == [BUNDLE, DRAW]
    assert allowed == {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts}
    assert "default-src 'none'" in policy and "'none'" not in policy.partition("script-src")[2].partition(";")[0]
    assert "alert(1)" not in re.sub(r"&lt;script&gt;alert\(1\)|\\u003cscript\\u003ealert\(1\)", "", page)
    assert "<img" not in page and not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=", page)
    page.encode("utf-8")


def test_without_circuitsvis_plotly_draws_the_same_patterns():
    page = attention_page(result_of({}, attention=PROMPTS), "").document
    assert page.count('class="figure"') == 2 and "pip install sat-lens[view]" in page
    assert "<script>alert" not in page
    figure = json.loads(re.search(r'class="figure">(.*?)</script>', page)[1])
    heat = figure["data"][0]
    z = np.frombuffer(base64.b64decode(heat["z"]["bdata"]), "f8").reshape(3, 3)
    np.testing.assert_array_equal(z, [[1, np.nan, np.nan], [0.25, 0.75, np.nan], [0.1, 0.2, 0.7]])
    assert html.unescape(figure["layout"]["xaxis"]["ticktext"][2]) == HOSTILE


def test_a_bundle_cannot_end_its_script_element(monkeypatch, tmp_path):
    folder = tmp_path / "circuitsvis" / "dist" / "cdn"
    folder.mkdir(parents=True)
    (tmp_path / "circuitsvis" / "__init__.py").write_text("raise RuntimeError('it must not be imported')")
    (folder / "iife.js").write_text("var a = '</script><!--';")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert circuitsvis_bundle() == "var a = '<\\/script><\\!--';"


@pytest.mark.skipif(not circuitsvis_bundle(), reason="circuitsvis is not installed")
def test_the_installed_circuitsvis_has_the_component_that_is_drawn():
    bundle = circuitsvis_bundle()
    assert "CircuitsVis" in bundle[:100] and "AttentionHeads" in bundle and "</script" not in bundle


@pytest.mark.parametrize("attention", [None, [], "x"])
def test_a_result_without_patterns_is_refused(attention):
    with pytest.raises(ValueError, match="there is none"):
        attention_page(result_of({}, attention=attention), BUNDLE)


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ({**PROMPTS[0], "patterns": {"a0.h0": [[1.0], [1.0]]}}, "rows of 1 to 3 numbers"),
        ({**PROMPTS[0], "patterns": {"a0.h0": [[1.0], [None, 1.0], [0, 0, 1]]}}, "between 0 and 1"),
        ({**PROMPTS[0], "patterns": {"a0.h0": [["x"], [0, 1.0], [0, 0, 1]]}}, "as attention_data gives it"),
        ({"tokens": ["a"]}, "as attention_data gives it"),
        ("x", "as attention_data gives it"),
    ],
)
def test_patterns_that_are_none_are_refused(prompt, why):
    with pytest.raises(ValueError, match=why):
        attention_page(result_of({}, attention=[prompt]), BUNDLE)


def test_the_page_is_made_again_from_disk_byte_for_byte(tmp_path):
    prompt = {**PROMPTS[0], "wrong_answer": " Ann"}
    result = result_of({"input->logits": 1.0}, attention=[prompt])
    result.save(tmp_path / "r")
    assert attention_page(Result.load(tmp_path / "r"), BUNDLE).document == attention_page(result, BUNDLE).document
