"""The lowest versions that `pyproject.toml` allows, as constraints: python tests/versions/lowest.py OUT

Written are the lowest versions of everything named in `pyproject.toml` that resolve together (uv, `lowest-direct`: what
comes along with them is the newest). A bound that another package raises cannot be tried; each is printed.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRA = "dev"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LOWER = re.compile(r">=\s*([0-9][0-9A-Za-z.]*)")


def bounds(pyproject: str) -> dict[str, str]:
    """The lower bound of each package that the library and its tests name, by normalised name.

    Raises:
        ValueError: a package without one.
    """
    project = tomllib.loads(pyproject)["project"]
    found: dict[str, str] = {}
    for line in (*project["dependencies"], *project["optional-dependencies"][EXTRA]):
        requirement = line.split(";")[0]
        name, lower = NAME.match(requirement), LOWER.search(requirement)
        if name is None or lower is None:
            raise ValueError(f"a dependency must have a lower bound, as in name>=1.2; got {line!r}")
        found[normal(name[0])] = lower[1]
    return found


def pins(constraints: str) -> dict[str, str]:
    """The versions of a constraints file, by normalised name."""
    lines = (line.split("#")[0].split(";")[0].strip() for line in constraints.splitlines())
    return {normal(name): version.strip() for name, _, version in (line.partition("==") for line in lines) if version}


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def same(bound: str, version: str) -> bool:
    """Whether a version is the bound itself: 3 is 3.0.0; what stands behind + is how it was built."""
    short = [re.sub(r"(\.0)+$", "", text.partition("+")[0]) for text in (bound, version)]
    return short[0] == short[1]


def untried(lower: dict[str, str], pinned: dict[str, str]) -> list[str]:
    """One line a bound that the constraints are above."""
    return [
        f"{name} >= {bound} could not be tried: {pinned.get(name, 'nothing')} is the lowest that resolves"
        for name, bound in lower.items()
        if name not in pinned or not same(bound, pinned[name])
    ]


def main(argv: Sequence[str]) -> None:
    if len(argv) != 1:
        sys.stderr.write(f"python tests/versions/lowest.py OUT: one file is needed; got {len(argv)}\n")
        sys.exit(2)
    out = Path(argv[0])
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--extra", EXTRA, "--quiet"]
    command += ["--resolution", "lowest-direct", "--python-version", version, "--no-annotate", "--no-header"]
    subprocess.run([*command, "--output-file", str(out.resolve())], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    lower = bounds((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    missing = untried(lower, pins(out.read_text(encoding="utf-8")))
    sys.stdout.write(f"{len(lower) - len(missing)} of {len(lower)} lower bounds as they stand in pyproject.toml\n")
    sys.stdout.write("".join(f"{line}\n" for line in missing))


if __name__ == "__main__":
    main(sys.argv[1:])
