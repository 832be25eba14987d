"""`python -m analyses.self_repair`: what it writes, and what it refuses; studies by the question's words."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.result import Result
from analyses.self_repair.__main__ import arguments, main, variant
from analyses.self_repair.figures import self_repair_figures
from analyses.self_repair.mechanisms import STUDIES, study_figures
from analyses.self_repair.repair import stories_of_tokens, story_self_repair, summary
from analyses.self_repair.study import study
from sat_lens import save
from sat_lens.commands import run
from sat_lens.repair import All, Mean
from tests.cases.self_repair import backup_model, story_result, texts


@pytest.fixture
def backup(tiny_model):
    return partial(backup_model, tiny_model)


@pytest.fixture(scope="module")
def found():
    return story_result()


@pytest.fixture
def saved(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    """A corpus and a checkpoint of a model with masks."""
    model = tiny_model(dtype=torch.float32)
    model.tokenizer = tiny_tokenizer
    save(model, tmp_path / "gated")
    words = np.random.default_rng(0).integers(1, 29, (12, 9))
    lines = [" ".join(f"w{i}" for i in row) for row in words]
    (tmp_path / "stories.txt").write_text("".join(f"{line}\n<|endoftext|>\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    return model, tmp_path


def test_the_command_writes_table_figures_and_meta(saved, capsys):
    _, folder = saved
    main(["gated", "--corpus", "stories.txt", "--tokens", "60", "--stream", "gated", "--select", "abs", "--quiet"])
    written = folder / "results" / "self_repair" / "gated.abs-gated"
    result = Result.load(written)
    assert len(result.table) == 8 and (written / "figures" / "text.html").exists()
    assert 60 <= result.meta["knobs"]["n_tokens"] < 75 and "second half of the layers" in capsys.readouterr().out
    assert result.meta["knobs"]["selection"] == "tokens with |direct effect| > 0.1 logits"
    json.dumps(result.meta)


def test_stories_have_as_many_tokens_as_asked_for(saved):
    model, _ = saved
    assert stories_of_tokens("stories.txt", model, 31).lengths.sum() == 40
    assert stories_of_tokens("stories.txt", model, 5).n == 2
    assert stories_of_tokens("stories.txt", model, 100_000).n == 12


@pytest.mark.parametrize(
    "line",
    [
        "gated --select best", "gated --masks dealt", "gated --stream both --ablation optimal", "gated --tokens 0",
        "gated --n 1", "nowhere/at/all", "none --stream gated", "gated --n 3 --tokens 60", "gated --seed -1",
        "gated --study hydra --component L0H0", "gated --study hydra --ablation zero",
        "gated --study thresholds --select all", "gated --study dose --order ablated",
        "gated --study dose --components mlps", "gated --study dose --stream both",
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_line(saved, tiny_model, tiny_tokenizer, line, capsys):
    if line.startswith("none"):
        model = tiny_model(ablation={"mask": "none"}, dtype=torch.float32)
        model.tokenizer = tiny_tokenizer
        save(model, saved[1] / "none")
    with pytest.raises(SystemExit) as end:
        run(main, [*line.split(), "--corpus", "stories.txt", "--quiet"])
    error = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and error[-1].count(":") >= 1 and "Traceback" not in "".join(error)


def test_what_suppresses_is_repaired_by_a_fall_of_the_logit(backup):
    """With the target's weights turned round the head suppresses, and the backup takes over: all of it is repaired."""
    model = backup(1.0)
    with torch.no_grad():
        model.unembed.W_U[0] = -torch.arange(29)
    result = story_self_repair(model, texts(), ablation="zero", select="bottom")
    row = result.table[result.table.component == "L1H0"].iloc[0]
    assert row.removed < 0 and row.self_repair == pytest.approx(row.removed)
    table = result.table.assign(p_holm=0.001)
    assert "1 of 8 heads repair and 0 break more" in summary(table, result.meta)


def test_heads_and_mlps_are_asked_together(tiny_model):
    model = tiny_model(ablation={"mask": "none"})
    result = story_self_repair(model, texts(), components="all", select="all", ablation="zero")
    for kind, components in (("head", "heads"), ("mlp", "mlps")):
        alone = story_self_repair(model, texts(), components=components, select="all", ablation="zero").table
        together = result.table[result.table.kind == kind]
        assert np.allclose(together.self_repair, alone.self_repair)
    heat = self_repair_figures(result)["repair_heatmap"].data[0]
    assert list(heat.x)[-1] == "mlp" and np.array(heat.z).shape == (2, 5)


def test_variants_are_named_after_what_is_not_default():
    assert variant(arguments(["x"])) == ""
    asked = arguments(["x", "--select", "all", "--stream", "both", "--order", "symmetric", "--components", "mlps"])
    assert variant(asked) == "mlps-all-symmetric-both"


def test_a_study_is_asked_with_the_questions_words(tiny_model):
    """The response to a dose, by the command's words and by the library's objects."""
    model, stories = tiny_model(ablation={"mask": "none"}), texts()
    found = study(model, stories, "dose", component=(0, 1), select="all", ablation="mean", seed=3)
    direct = STUDIES["dose"][0](model, stories, component=(0, 1), select=All(), ablation=Mean(), seed=3)
    pd.testing.assert_frame_equal(found.table, direct.table)
    with pytest.raises(ValueError, match="a study must be one of erasure, .*; got 'doze'"):
        study(model, stories, "doze")
    with pytest.raises(ValueError, match="hydra is of all components"):
        study(model, stories, "hydra", component=(0, 1))


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_words_and_figures(tiny_model, name):
    result = study(tiny_model(ablation={"mask": "none"}), texts(), name, select="all")
    assert result.name.startswith("self_repair_") and len(result.table) and study_figures(result)


@pytest.mark.parametrize("name", ["dose", "erasure_projection", "ln_ratio", "thresholds"])
def test_the_command_writes_a_study(saved, capsys, name):
    select = ["--select", "all"] if name in ("dose", "ln_ratio") else []
    main(["gated", "--corpus", "stories.txt", "--tokens", "60", "--study", name, *select, "--quiet"])
    folder = saved[1] / "results" / "self_repair" / f"gated.{name}{'-all' if select else ''}"
    assert Result.load(folder).name == f"self_repair_{name}" and list((folder / "figures").glob("*.html"))
