"""Commands that are given twice say and write the same: tables, weights, pages, whatever the process stands at.

And nearly the same numbers on one thread and on two, in processes whose sets and dictionaries are hashed otherwise.
"""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from sat_lens import save
from sat_lens.commands import list_commands
from sat_lens.presets import PRESETS
from tests.trust.test_damaged_files import llama
from tests.trust.test_every_question import made
from tests.trust.work import STORY, TINY

ROOT = Path(__file__).resolve().parents[2]
TEXT_OF_TRAINING = "--corpus {text} --held-out {text} --cache {out}/packed --max-tokens 4000"
TOY = (
    "--operands 4 --d-model 32 --d-mlp 64 --n-latents 48 --n-layers 1 --batch-size 20 --steps 110 --lr 5e-3 "
    "--train-share 0.6 --val-share 0.2 --eval-every 110 --weight-decay 0.1 --warmup-steps 5"
)
SWEEP = (
    "base: {{preset: cpu, steps: 2, eval_every: 1, eval_rows: 2, batch_size: 2, max_tokens: 4000, corpus: {text}, "
    "held_out: {text}, cache: {packed}}}\ngrid: {{seed: [0, 1]}}\n"
)
COMMANDS = {
    "generate": "sat_lens.generate {ck} --tokens 12 --seed 3",
    "evaluate": "sat_lens.evaluate {ck} --n 4 --max-tokens 2000",
    "training": f"sat_lens.train {TEXT_OF_TRAINING} --steps 3 --eval-every 1 --eval-rows 2 --batch-size 2 "
    "--warmup-steps 1 --out {out}/run --quiet",
    "convert": "sat_lens.convert {folder}/a.bin {out}/converted",
    "doctor": "sat_lens.doctor {ck}",
    "sweep": "sat_lens.sweep {folder}/sweep.yaml --out {out}/sweep --quiet",
    "tokenizers": "sat_lens.tokenizers --corpus {text} --vocab-size 270 --out {out}/tokenizer",
    "localization": "analyses.localization {ck} --n 4 --force --out {out} --quiet",
    "localization, eap-ig": "analyses.localization {ck} --method eap-ig --n 4 --steps 2 --force --out {out} --quiet",
    "localization, acdc": "analyses.localization {ck} --method acdc --n 2 --tau 1 --no-checks --force --quiet "
    "--out {out}",
    "leakage": "analyses.leakage {ck} --quick --n 6 --out {out} --quiet",
    "specialization": "analyses.specialization {ck} --quick --n 8 --draws 2 --page --out {out} --quiet",
    "probing": "analyses.probing {ck} --n 10 --folds 3 --target role --tokens 8 --out {out} --quiet",
    "self-repair": "analyses.self_repair {ck} --tokens 400 --out {out} --quiet",
    "self-repair, hydra": "analyses.self_repair {ck} --study hydra --tokens 200 --out {out} --quiet",
    "localization, overlap": "analyses.localization {ck} --method overlap --n 4 --out {out} --quiet",
    "sparsity": "analyses.sparsity {ck} --n 4 --out {out} --quiet",
    "rewriting": "analyses.rewriting {ck} --kind neurons --layer 0 --n 20 --rules token --quick --out {out} --quiet",
    "untangling": f"analyses.untangling train {TOY} --out {{out}} --quiet; analyses.untangling sweep "
    "{out}/decoder-n4-joint-l0.01-s0 --quick --part all --folds 2 --tau 0 0.1 --target sum --out {out} --quiet",
    "report": "analyses.localization {ck} --n 4 --force --out {out} --quiet; analyses.report {ck} --out {out} --quiet",
    "sae": "analyses.sae {ck} --steps 2 --coefficients 1 --expansion 2 --n 4 --out {out} --quiet",
    "paper": "analyses.paper {ck} --stored --tokens 2000 --out {out} --quiet",
}
QUICK = ("generate", "evaluate", "training", "tokenizers", "localization", "self-repair")
NO_PART_OF_AN_ANSWER = ("date", "command", "tokens_per_second", "seconds", "cpu_seconds")
DATE = re.compile(r"20\d\d-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(\+00:00|Z| UTC)?)?")


def test_every_command_is_among_them():
    listed = "".join(list_commands(ROOT / package, package) for package in ("sat_lens", "analyses"))
    asked = {line.split()[0] for commands in COMMANDS.values() for line in commands.split("; ")}
    assert asked == set(re.findall(r"python -m ([\w.]+)", listed))


def bare(value: object, out: str) -> object:
    """JSON without dates, rates and the folder it was written to."""
    if isinstance(value, dict):
        return {key: bare(inner, out) for key, inner in value.items() if key not in NO_PART_OF_AN_ANSWER}
    if isinstance(value, list):
        return [bare(inner, out) for inner in value]
    return value.replace(out, "OUT") if isinstance(value, str) else value


def answers(out: Path) -> dict[str, object]:
    """What a folder holds, without what may differ: dates, rates, the folder's own name, sums of all that."""
    content: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        assert not path.name.endswith(".lock"), "a lock that was left"
        if not path.is_file() or path.name.lower() == "manifest.json":
            continue
        place = str(path.relative_to(out))
        if path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            content[place] = [bare(json.loads(line), str(out)) for line in lines]
        elif path.suffix in (".html", ".svg", ".md", ".tex", ".txt"):
            content[place] = DATE.sub("DATE", path.read_text().replace(str(out), "OUT"))
        else:
            content[place] = path.read_bytes()
    return content


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in COMMANDS]
)
def test_a_command_given_twice_says_and_writes_the_same(name, tmp_path, monkeypatch, capsys, tried):
    monkeypatch.setitem(PRESETS["cpu"], "model", TINY)
    save(made("local"), tmp_path / "ck")
    text = tmp_path / "text.txt"
    text.write_text(STORY * 60)
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(text=text, packed=tmp_path / "packed"))
    llama(tmp_path)
    written = []
    for out in (tmp_path / "one", tmp_path / "other"):
        torch.manual_seed(len(written))  # where a process stands may not matter
        for command in COMMANDS[name].format(folder=tmp_path, ck=tmp_path / "ck", text=text, out=out).split("; "):
            module, *flags = command.split()
            package = (ROOT / module.replace(".", "/")).is_dir()
            import_module(f"{module}.__main__" if package else module).main(flags)
        said = DATE.sub("DATE", capsys.readouterr().out.replace(str(out), "OUT"))
        written.append({"said": said, **answers(out)})
    assert written[0].keys() == written[1].keys()
    assert len(written[0]["said"]) > 10 or len(written[0]) > 2
    for place, content in written[0].items():
        assert content == written[1][place], place
    tried("commands given twice", 1)


ON_TWO_THREADS = {
    "generate": "sat_lens.generate local-k4-s0 --tokens 40 --temperature 0",
    "evaluate": "sat_lens.evaluate local-k4-s0 --n 40 --max-tokens 20000",
    "localization": "analyses.localization local-k4-s0 --n 16 --out {out} --quiet --json",
    "leakage": "analyses.leakage local-k4-s0 --quick --n 10 --out {out} --quiet --json",
    "self-repair": "analyses.self_repair local-k4-s0 --tokens 2000 --out {out} --quiet --json",
    "sparsity": "analyses.sparsity local-k4-s0 --n 16 --out {out} --quiet --json",
    "training": "sat_lens.train --steps 20 --eval-every 10 --eval-rows 16 --batch-size 16 --max-tokens 60000 "
    "--corpus stories --cache {out}/packed --out {out}/run --quiet",
}
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def numbers(text: str, out: Path) -> tuple[str, list[float]]:
    """A text without its numbers, dates and times, and the numbers."""
    text = DATE.sub("DATE", text.replace(str(out), "OUT"))
    text = re.sub(r'"\w*(per_second|seconds|threads)": ([\d.]+|\{[^}]*\})', "", text)
    return NUMBER.sub("#", text), [float(found) for found in NUMBER.findall(text)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_TWO_THREADS)
def test_a_command_says_nearly_the_same_on_two_threads_and_with_other_hashes(name, tmp_path, tried):
    """1e-3 relative plus 1e-3 absolute (what is printed has four digits, some of them sums of many that cancel)."""
    said = []
    for threads in ("1", "2"):
        out = tmp_path / threads
        module, *flags = ON_TWO_THREADS[name].format(out=out).split()
        environment = {"OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", module, *flags], cwd=tmp_path, env=os.environ | environment, capture_output=True,
            text=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        logs = sorted(out.rglob("log.jsonl"))[-1:]
        said.append(numbers(done.stdout + "".join(path.read_text() for path in logs), out))
    (one, one_numbers), (two, two_numbers) = said
    assert one == two and len(one) > 40 and (one_numbers or name == "generate")
    assert two_numbers == pytest.approx(one_numbers, rel=1e-3, abs=1e-3)
    tried("commands on one thread and on two", 1)
