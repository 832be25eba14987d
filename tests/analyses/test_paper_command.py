"""`python -m analyses.paper`: what it takes from what is stored, what it asks, and what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest

from analyses.paper.__main__ import arguments, main, short
from analyses.paper.asked import asked_so, found
from analyses.paper.comparison import OPEN
from analyses.paper.published import FAITHFUL, ROWS
from analyses.result import Result
from sat_lens import save
from sat_lens.checkpoint import checkpoint_hash
from sat_lens.commands import run as as_command
from tests.analyses.test_paper import stored_results


def test_the_command_shows_what_is_stored_of_these_weights_alone(tiny_model, tiny_tokenizer, tmp_path, capsys):
    corpus, out = tmp_path / "corpus.txt", tmp_path / "out"
    corpus.write_text("\n<|endoftext|>\n".join(" ".join(f"w{1 + (i * j) % 28}" for j in range(8)) for i in range(9)))
    for i, mask in enumerate(("none", "local")):
        model = tiny_model(ablation={"mask": mask}, seed=i)
        model.tokenizer = tiny_tokenizer
        save(model, tmp_path / mask, training={"seed": 0, "tokens_seen": 9, "step": 3},
             log='{"step": 3, "held_out_clean": 3.0}\n')  # fmt: skip
        hashed = checkpoint_hash(tmp_path / mask)
        for question, result in stored_results(hashed).items():
            if (question, mask) == ("sae", "none"):  # of other weights
                result = Result(result.name, result.table, {}, {**result.meta, "checkpoint_sha256": "other"})
            result.save(out / question / (f"{mask}.acdc" if question == "localization" else mask))
    main([str(tmp_path / "none"), str(tmp_path / "local"), "--stored", "--corpus", str(corpus), "--out", str(out),
          "--tokens", "80", "--quiet", "--json"])  # fmt: skip
    first, second, compared = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    metrics = [{row["metric"] for row in one["table"]} for one in (first, second)]
    assert "SAE L0 at FVU" in metrics[1] - metrics[0] and "IOI edges" in metrics[0] & metrics[1]
    assert "perplexity, ablated" in metrics[1] - metrics[0]
    assert {row["verdict"] for row in compared["meta"]["claims"]} == {OPEN}  # one seed an arm
    folder = out / "paper" / "arms"
    assert {"table1.tex", "table1.csv", "sound.tex", "claims.csv", "figures"} <= {p.name for p in folder.iterdir()}
    assert {p.name for p in (folder / "figures").iterdir()} == {
        "table.html", "trade_off.html", "training.html", "mechanism_none.html", "mechanism_local.html",
    }  # fmt: skip
    own = {p.name for p in (out / "paper" / "local" / "figures").iterdir()}
    assert own == {"mechanism.html", "training.html", "masks.html"}


def test_only_answers_to_what_is_asked_now_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("analyses.paper.asked.weights_hash", lambda checkpoint: "x")
    asked = "python -m analyses.localization a b --method acdc --n 64 --force --quiet --out there"
    result = stored_results()["localization"]
    Result("localization", result.table, {}, {**result.meta, "command": asked}).save(tmp_path / "localization/m.acdc")
    same = ["m", "--out", str(tmp_path)]
    taken = {
        tuple(flags): found(arguments([*same, *flags]), "localization", "m", "m") is not None
        for flags in ([], ["--corpus", "stories", "--tokens", "9"], ["--sae-steps", "5"], ["--n", "32"],
                      ["--seed", "1"], ["--reproduce"], ["--reproduce", "--stored"])
    }  # fmt: skip
    assert list(taken.values()) == [True, True, True, False, False, False, True]
    assert asked_so("sae", "python -m analyses.sae m --corpus stories", [])
    assert not asked_so("sae", "python -m analyses.sae m --steps 9", [])
    assert not any(
        asked_so("sae", command, []) for command in (None, "", "python", "python -m analyses.sae m --what 1")
    )


@pytest.mark.parametrize("damaged", ["model.safetensors", "corpus"])
def test_what_cannot_be_read_is_said_once_and_no_question_is_asked(
    tiny_model, tiny_tokenizer, tmp_path, capsys, damaged
):
    model = tiny_model()
    model.tokenizer = tiny_tokenizer
    save(model, tmp_path / "m", training={"seed": 0, "tokens_seen": 9, "step": 3})
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(b"w1 w2 w3\n" if damaged != "corpus" else b"\xff\xfe\x00w1")
    if damaged != "corpus":
        weights = (tmp_path / "m" / damaged).read_bytes()
        (tmp_path / "m" / damaged).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(SystemExit) as ended:
        as_command(main, [str(tmp_path / "m"), "--corpus", str(corpus), "--out", str(tmp_path / "out"), "--quiet"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_done_otherwise_than_published_is_said(tmp_path):
    (tmp_path / "prompts.json").touch()
    (tmp_path / "valid.txt").touch()
    ours = ["--task", str(tmp_path / "prompts.json"), "--corpus", str(tmp_path / "valid.txt")]
    told = [short(arguments(["m", "--reproduce", *flags])) for flags in ([], ours, ["--n", "8", "--sae-steps", "5"])]
    generated = ["the generator's prompts", "the generator's text"]
    assert told == [generated, ["task prompts.json"], ["SAEs of 5 steps", "8 prompts", *generated]]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--tokens", "0"], "--tokens: must be a whole number"),
        (["--sae-steps", "none"], "--sae-steps: must be a whole number"),
        (["--stored", "--sae-steps", "5"], "--stored asks no question"),
        (["--task", "iio"], "--task must be one of"),
        (["--n", "1"], "--n must be at least 2 prompts"),
        (["--n", "x"], "--n: must be a whole number"),
        (["--device", "tpu"], "--device: device must be cpu"),
        (["--seed", "one"], "--seed"),
        (["--stored=yes"], "--stored"),
        (["--reproduce=1"], "--reproduce"),
        (["--json=1"], "--json"),
        (["--static=1"], "--static"),
        (["--quiet=1"], "--quiet"),
        (["--out"], "--out"),
        (["--corpus"], "--corpus"),
    ],
)
def test_bad_arguments_end_in_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["none-s0", *argv])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.slow
def test_the_published_procedures_from_end_to_end_by_the_command(
    tiny_model, tiny_tokenizer, tmp_path, capsys, monkeypatch
):
    """Every question is asked: ACDC in the reference's order, one SAE of coefficient 5, the published weights."""
    import dataclasses

    from analyses.sae import settings

    small = {"batch_tokens": 100, "norm_batches": 2, "rows": 8, "buffer_rows": 40, "text_tokens": 5_000, "expansion": 2}
    monkeypatch.setattr(settings, "PUBLISHED", dataclasses.replace(settings.PUBLISHED, **small, n_tokens=10_000))
    draw = np.random.default_rng(0)
    corpus, task, out = tmp_path / "corpus.txt", tmp_path / "prompts.json", tmp_path / "out"
    texts = [" ".join(f"w{i}" for i in draw.integers(1, 29, draw.integers(5, 12))) for _ in range(1000)]
    corpus.write_text("\n<|endoftext|>\n".join(texts) + "\n")
    prompts = [{"clean": f"w{i} w9 w{j}", "corrupt": f"w{i} w10 w{j}", "answers": [" w3"], "wrong_answers": [" w4"]}
               for i in range(11, 15) for j in range(15, 17)]  # fmt: skip
    task.write_text(json.dumps({"word_idxs": {}, "prompts": prompts}))
    folders = []
    for i, mask in enumerate(("none", "local")):
        model = tiny_model(ablation={"mask": mask}, seed=i)
        model.tokenizer = tiny_tokenizer
        folders.append(str(tmp_path / mask))
        save(model, folders[-1], training={"seed": 0, "tokens_seen": 9, "step": 3},
             log='{"step": 3, "held_out_clean": 3.0, "held_out_ablated": 3.5}\n')  # fmt: skip
    flags = ["--reproduce", "--sae-steps", "20", "--n", "8", "--task", str(task), "--corpus", str(corpus)]
    main([*folders, *flags, "--out", str(out), "--tokens", "200", "--quiet", "--json", "--static"])
    printed = capsys.readouterr()
    first, second, compared = (json.loads(line) for line in printed.out.splitlines())
    assert "warning" not in printed.err
    for one in (first, second):
        found = {row["metric"]: row["value"] for row in one["table"]}
        assert set(FAITHFUL) <= set(found) and all(found[name] is not None for name in FAITHFUL)
    assert compared["meta"]["short"] == ["SAEs of 20 steps", "8 prompts", "task prompts.json"]
    root = out / "reproduce"
    assert json.loads((root / "localization" / "local.acdc" / "meta.json").read_text())["meta"]["knobs"]["order"] == (
        "reference"
    )
    swept = Result.load(root / "sae" / "local")
    assert swept.meta["settings"]["coefficients"] == [5.0] and swept.meta["settings"]["lr"] == 1e-5
    counted = Result.load(root / "sparsity" / "none").table.set_index(["of", "metric"])
    assert second["table"] and counted.loc[("with embeddings", "mean_abs_weight")].value == pytest.approx(
        next(row["value"] for row in first["table"] if row["metric"] == "mean_abs_weight")
    )
    folder = root / "paper" / "arms"
    table = pd.read_csv(folder / "table1.csv")
    assert set(table[table.source == "published"].arm) == set(ROWS)
    assert set(table[table.source == "ours"].arm) == {"none", "local k=3/5"}
    text = (folder / "table1.tex").read_text()
    assert text.count("(published)") == 9 and text.count("(ours, 1 seed)") == 2 and "but: SAEs of 20 steps" in text
    page = (folder / "figures" / "table.html").read_text()
    assert page.count("(published)") == 9 and "the published procedure (but: SAEs of 20 steps" in page
    for name in ("trade_off", "training", "circuits", "mechanism_local"):
        assert {path.suffix for path in (folder / "figures").glob(f"{name}.*")} == {".html", ".svg", ".pdf"}
