"""`python -m sat_lens.train`: flags, files and presets; what is refused; runs taken up again."""

import json
from pathlib import Path

import pytest
import torch

from sat_lens import load
from sat_lens.checkpoint import read_config


def chosen(*argv: str) -> dict:
    from sat_lens.train import options

    return options([*argv, "--out", "runs/x"])


def test_flags_win_over_the_file_which_wins_over_the_preset(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("preset: paper\nlr: 1e-3\nk-attn: 2\nmask: global\nsteps: 7\nquiet: true\n")
    found = chosen("--config", str(config), "--steps", "9")
    assert (found["steps"], found["lr"], found["k_attn"], found["mask"]) == (9, 1e-3, 2, "global")
    assert (found["batch_size"], found["preset"], found["k_mlp"], found["quiet"]) == (24, "paper", 4, True)
    assert found["out"] == Path("runs/x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("learning_rate: 3\n", "unknown setting 'learning_rate' in the configuration file; known are "),
        ("- a\n- b\n", "must map settings to values; got list"),
        ("a: [\n", "not YAML"),
        ("", "must map settings to values; got NoneType"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_refused(tmp_path, content, words):
    config = tmp_path / "config.yaml"
    config.write_text(content)
    with pytest.raises(ValueError, match=words):
        chosen("--config", str(config))


@pytest.mark.parametrize("content", ["steps: many", "mask: sideways", "preset: huge", "lr: [1, 2]", "k_attn: 2.5"])
def test_a_value_of_the_wrong_type_in_the_file_exits_with_2_and_one_line(tmp_path, capsys, content):
    config = tmp_path / "config.yaml"
    config.write_text(content)
    with pytest.raises(SystemExit) as exit_:
        chosen("--config", str(config))
    assert exit_.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_run_needs_a_folder():
    from sat_lens.train import options

    with pytest.raises(ValueError, match="--out is needed"):
        options([])


def test_switches_are_off_unless_given_and_a_file_may_give_them(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("precision: bf16\nfsdp: true\ncompile: false\n")
    found = chosen("--config", str(config), "--dry-run")
    assert (found["precision"], found["fsdp"], found["dry_run"], found["resume"]) == ("bf16", True, True, False)
    assert "compile" not in found


def test_a_dry_run_prints_an_estimate_and_makes_nothing(tmp_path, monkeypatch, capsys):
    from sat_lens.train import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sat_lens.cost.dry_run", lambda cfg, ablation, settings: f"{cfg.d_model} {settings.steps}")
    main(["--corpus", "not-there.txt", "--dry-run", "--out", "run", "--steps", "7"])
    assert capsys.readouterr().out == "64 7\n" and not list(tmp_path.iterdir())


def test_the_command_trains_refuses_to_overwrite_and_resumes(tmp_path, monkeypatch, capsys):
    from sat_lens.train import main

    monkeypatch.chdir(tmp_path)
    story = "Once upon a time Tom and Lily went to the park. Tom gave a ball to Lily. They were happy.\n<|endoftext|>\n"
    (tmp_path / "text.txt").write_text(story * 60)
    sizes = ["--steps", "2", "--eval-every", "1", "--eval-rows", "2", "--batch-size", "2", "--max-tokens", "4000"]
    argv = ["--corpus", "text.txt", "--held-out", "text.txt", "--out", "run", "--quiet", "--log-every", "1", *sizes]
    main(argv)
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "run" and out.startswith("step 2: held-out loss clean ") and err == ""
    with pytest.raises(ValueError, match="run holds a run already; pass --resume to go on, or another --out"):
        main(argv)
    with pytest.raises(ValueError, match="was trained with lr=0.002; got 0.001"):
        main([*argv, "--resume", "--lr", "1e-3"])
    main([*argv, "--resume"])
    model = load("run")
    assert (model.cfg.n_layers, model.cfg.d_model, model.cfg.n_ctx) == (4, 64, 128)
    assert model.tokenizer.decode(model.tokenizer.encode("Once upon a time")) == "Once upon a time"
    said = read_config(tmp_path / "run" / "last")
    assert said["training"]["tokens_seen"] == 2 * 2 * 128 and str(tmp_path) not in json.dumps(said)


def test_a_run_stopped_before_its_first_checkpoint_resumes_from_the_beginning(tmp_path, monkeypatch, capsys):
    from sat_lens.train import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("Tom ran to the park and saw a big dog. It was his.\n<|endoftext|>\n" * 60)
    sizes = ["--steps", "2", "--eval-every", "2", "--eval-rows", "2", "--batch-size", "2", "--max-tokens", "4000"]
    argv = ["--corpus", "text.txt", "--held-out", "text.txt", "--quiet", *sizes]
    main([*argv, "--out", "undisturbed"])
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "log.jsonl").write_text("")
    capsys.readouterr()
    main([*argv, "--out", "stopped", "--resume"])
    assert "nothing to resume in stopped: starting from the beginning" in capsys.readouterr().err
    left, right = (load(folder).state_dict() for folder in ("undisturbed", "stopped"))
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_training_can_begin_with_the_weights_of_a_checkpoint(tmp_path, monkeypatch):
    from sat_lens.checkpoint import checkpoint_hash, load, read_config
    from sat_lens.train import main

    monkeypatch.chdir(tmp_path)
    base = ["--corpus", "stories", "--max-tokens", "20000", "--eval-rows", "2", "--batch-size", "2", "--quiet"]
    main([*base, "--mask", "local", "--steps", "2", "--out", "first"])
    main([*base, "--mask", "local", "--steps", "1", "--lr", "1e-9", "--init-from", "first/last", "--out", "second"])
    first, second = load("first/last").state_dict(), load("second/last").state_dict()
    assert all(torch.allclose(second[key].double(), value.double(), atol=1e-7) for key, value in first.items())
    entry = read_config(tmp_path / "second" / "last")["training"]
    assert entry["init_sha256"] == checkpoint_hash("first/last") and entry["init_from"] == "last"
    assert entry["tokens_seen_before"] == 2 * 2 * 128 and "--init-from last" in entry["command"]
    with pytest.raises(ValueError, match="only in one of the two"):
        main([*base, "--mask", "none", "--steps", "1", "--init-from", "first/last", "--out", "third"])
    with pytest.raises(ValueError, match="needs about .* lower --batch-size"):
        main([*base, "--batch-size", "999999", "--steps", "1", "--out", "fourth"])
    assert not (tmp_path / "third").exists() and not (tmp_path / "fourth").exists()
