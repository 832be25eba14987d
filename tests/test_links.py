"""Every relative link, image and anchor of every page and notebook leads somewhere, and so do paths in backticks."""

import json
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:src|href)=\\?\"([^\"\\]+)\\?\"")
PATH = re.compile(r"`((?:sat_lens|analyses|tests|data|notebooks)/[\w./-]+)`")


def tracked(root: Path) -> list[Path]:
    """Pages and notebooks that git knows, or all of them where there is no git."""
    known = subprocess.run(["git", "ls-files", "*.md", "*.ipynb"], cwd=root, capture_output=True, text=True)
    names = known.stdout.split() if known.returncode == 0 else []
    return [root / name for name in names] or sorted([*root.rglob("*.md"), *root.rglob("*.ipynb")])


def prose(path: Path) -> str:
    """The text of a page without its code blocks; the markdown cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def anchors(path: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.*)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def broken(root: Path, page: Path) -> list[str]:
    """Links and paths of a page that lead nowhere."""
    text, found = prose(page), []
    for target in (unquote(first or second) for first, second in LINK.findall(text)):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        to = (page.parent / place).resolve() if place else page
        if not to.exists() or (anchor and to.suffix == ".md" and anchor not in anchors(to)):
            found.append(target)
    return found + [path for path in PATH.findall(text) if not (root / path).exists()]


@pytest.mark.parametrize("page", tracked(ROOT), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page):
    assert broken(ROOT, page) == []


def test_there_are_pages_and_a_broken_link_is_found(tmp_path):
    assert {"README.md", "CONTRIBUTING.md"} <= {path.name for path in tracked(ROOT)} and len(tracked(ROOT)) > 10
    (tmp_path / "there.md").write_text("# A title, here\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#a-title-here) [c](https://x.y) ![d](gone.svg) [e](there.md#no)\n"
        "[f](#nor) `sat_lens/gone.py`\n```\n[g](in-code.md)\n```\n# Own\n[h](#own)\n"
    )
    assert broken(tmp_path, page) == ["gone.svg", "there.md#no", "#nor", "sat_lens/gone.py"]
