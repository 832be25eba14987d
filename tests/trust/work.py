"""Small pieces of work that are disturbed: a training run, a sweep, packing, an explainer's replies, a report.

Each can be begun, gone on with after a disturbance, and judged against one that was never disturbed.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sat_lens.presets import TrainingSettings
from tests.cases.training import assert_same_run, text
from tests.trust.processes import left_behind

Say = Callable[[str], None]
STORY = "Once upon a time Tom and Lily went to the park. Tom gave a ball to Lily. They were happy.\n<|endoftext|>\n"
TINY = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "d_mlp": 8, "n_ctx": 32}


def step_of(checkpoint: Path) -> int:
    """Step of a checkpoint that is whole; -1 without one."""
    from sat_lens.checkpoint import read_config, verify_files
    from sat_lens.files import recovered

    if not recovered(checkpoint).exists():
        return -1
    verify_files(checkpoint)
    return read_config(checkpoint)["training"]["step"]


class Training:
    """24 steps with an evaluation every 4."""

    def __init__(self, build: Callable[..., Any]) -> None:
        self.build = build

    def run(self, folder: Path, say: Say) -> None:
        """Begin it, or go on; each checkpoint is reported when `_evaluate` has come back."""
        from sat_lens.training import Trainer

        torch.manual_seed(0)
        model = self.build(n_ctx=16)
        settings = TrainingSettings(steps=24, batch_size=4, lr=5e-3, warmup_steps=4, eval_every=4, log_every=3)
        trainer = Trainer(model, settings, text, (text(10_000, 8), torch.ones(8, 16)), folder)
        if step_of(folder / "last") >= 0:
            trainer.resume()
        evaluate = trainer._evaluate

        def evaluated() -> None:
            evaluate()
            say(f"step {trainer.step}")

        trainer._evaluate = evaluated
        trainer.train(progress=False)

    def kept(self, folder: Path, said: list[str]) -> None:
        """What was reported is there."""
        steps = [int(line.split()[1]) for line in said if line.startswith("step ")]
        assert step_of(folder / "last") >= max(steps, default=-1)

    def same(self, one: Path, other: Path) -> None:
        assert_same_run(one, other)
        assert sorted(p.name for p in other.iterdir()) == sorted(p.name for p in one.iterdir())


class Packing:
    """The same stories into a cache of two parts."""

    def __init__(self, text: Path) -> None:
        from sat_lens.tokenizers import load_tokenizer

        text.write_text("".join(STORY.replace("ball", f"ball {i}") for i in range(2000)))
        self.text, self.tokenizer = text, load_tokenizer("stories-4096")

    def run(self, folder: Path, say: Say) -> None:
        from sat_lens.packing import packed

        for part in ("train", "held_out"):
            found = packed(str(self.text), self.tokenizer, folder, part=part)
            say(f"{found.folder.name} {found.n_tokens}")

    def kept(self, folder: Path, said: list[str]) -> None:
        from sat_lens.packing import PackedTokens

        for line in said:
            name, n_tokens = line.split()
            assert PackedTokens.open(folder / name).n_tokens == int(n_tokens)

    def same(self, one: Path, other: Path) -> None:
        for path in one.rglob("*.*"):
            assert (other / path.relative_to(one)).read_bytes() == path.read_bytes(), path
        assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())


class Sweep:
    """Two runs of `sat_lens.train`, each in a process of its own, forked instead of started."""

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        from sat_lens.presets import PRESETS

        (folder / "text.txt").write_text(STORY * 60)
        settings = "preset: cpu, steps: 4, eval_every: 2, eval_rows: 2, batch_size: 2, max_tokens: 4000, log_every: 1"
        corpus = f"corpus: {folder / 'text.txt'}, held_out: {folder / 'text.txt'}, cache: {folder / 'packed'}"
        (folder / "sweep.yaml").write_text(f"base: {{{settings}, {corpus}}}\ngrid: {{mask: [none, local]}}\n")
        monkeypatch.setitem(PRESETS["cpu"], "model", TINY)
        monkeypatch.setattr("sat_lens.sweep.run_here", forked_here)
        self.file = folder / "sweep.yaml"

    def run(self, folder: Path, say: Say) -> None:
        from sat_lens.sweep import main

        main([str(self.file), "--out", str(folder), "--quiet"])
        say("summary")

    def kept(self, folder: Path, said: list[str]) -> None:
        if said:
            assert (folder / "summary.csv").read_text().count("finished") == 2

    def same(self, one: Path, other: Path) -> None:
        assert without_names(one / "summary.csv") == without_names(other / "summary.csv")
        for name in ("mask-none", "mask-local"):
            ours, theirs = (folder / name / "last" / "model.safetensors" for folder in (one, other))
            assert ours.read_bytes() == theirs.read_bytes()


def without_names(path: Path) -> str:
    return path.read_text().replace(str(path.parent), "")


def forked_here(commands: list[list[str]], jobs: int) -> Any:
    """`sat_lens.sweep.run_here`, with children of this process."""
    import os

    for command in commands:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                from sat_lens.train import main

                main(command[command.index("sat_lens.train") + 1 :])
                code = 0
            finally:
                os._exit(code)
        yield None if os.waitpid(pid, 0)[1] == 0 else "failed"


class Explaining:
    """60 requests to a chat model, whose replies are kept."""

    n = 60

    def run(self, folder: Path, say: Say) -> None:
        self.asked(folder, say)

    def asked(self, folder: Path, say: Say) -> Any:
        from analyses.explain.chat_cache import CachedChat
        from tests.analyses.test_explain_chat_cache import Echo, requests

        cached = CachedChat(Echo(), folder)
        for request in requests(self.n):
            say(cached.answers([request])[0].text)
        return cached

    def kept(self, folder: Path, said: list[str]) -> None:
        """Nothing that was answered is asked again, and the answers are the same."""
        again: list[str] = []
        cached = self.asked(folder, again.append)
        assert cached.n_hits >= len(said) and again[: len(said)] == said

    def same(self, one: Path, other: Path) -> None:
        files = {p.relative_to(one): p.read_bytes() for p in one.rglob("*.json")}
        assert files == {p.relative_to(other): p.read_bytes() for p in other.rglob("*.json")}


class ReportCommand:
    """`analyses.report` of a shipped checkpoint: a localization, its figures, and the page."""

    def run(self, folder: Path, say: Say) -> None:
        from analyses.report import main

        main(["none-s0", "--n", "4", "--out", str(folder), "--quiet"])
        say("page")

    def kept(self, folder: Path, said: list[str]) -> None:
        """Each file that has its name is whole, also where nothing was reported yet."""
        from analyses.result import Result

        assert (folder / "report.html").exists() or "page" not in said
        for path in folder.rglob("*.html"):
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                assert path.read_text(encoding="utf-8").rstrip().endswith("</html>"), path
        for result in folder.glob("*/*/"):
            if not result.name.startswith("."):
                Result.load(result)

    def same(self, one: Path, other: Path) -> None:
        names = [sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()) for folder in (one, other)]
        assert names[0] == names[1]
        for name in names[0]:
            ours, theirs = (undated(folder, folder / name) for folder in (one, other))
            assert ours == theirs, name


def undated(folder: Path, path: Path) -> str:
    """A text without its date and its folder's name."""
    text = path.read_text(encoding="utf-8").replace(str(folder), "OUT")
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+:\d]*", "DATE", text)


class Reporting:
    """A result with a figure, and a page, written 40 times, each time with another number."""

    n = 40

    def run(self, folder: Path, say: Say) -> None:
        import pandas as pd

        from analyses.cli import write_result
        from analyses.figures import Page
        from analyses.result import Result
        from sat_lens.files import write_whole

        for version in range(self.n):
            result = Result("q", pd.DataFrame({"x": [version] * 500}), {"x": "nats"}, {"version": version})
            write_result(result, {"drawn": Page(self.page(version))}, folder / "q" / "ckpt")
            say(f"result {version}")
            write_whole(folder / "report.html", self.page(version))
            say(f"page {version}")

    @staticmethod
    def page(version: int) -> str:
        return "<html>" + f"{version} " * 20_000 + "</html>"

    def kept(self, folder: Path, said: list[str]) -> None:
        from analyses.result import Result

        versions = {
            word: [int(line.split()[1]) for line in said if line.startswith(word)] for word in ("result", "page")
        }
        if versions["result"] or (folder / "q" / "ckpt").exists():
            found = Result.load(folder / "q" / "ckpt")
            version = found.meta["version"]
            assert max(versions["result"], default=0) <= version and (found.table["x"] == version).all()
            assert len(found.table) == 500
            assert (folder / "q" / "ckpt" / "figures" / "drawn.html").read_text() == self.page(version)
        if versions["page"] or (folder / "report.html").exists():
            text = (folder / "report.html").read_text()
            version = int(text[6:].split()[0])
            assert text == self.page(version) and version >= max(versions["page"], default=0)

    def same(self, one: Path, other: Path) -> None:
        for folder in (one, other):
            self.kept(folder, [f"result {self.n - 1}", f"page {self.n - 1}"])
        assert not left_behind(other)
