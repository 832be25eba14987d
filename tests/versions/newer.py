"""Which versions of this environment are others than a constraints file pins: python tests/versions/newer.py FILE"""

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path


def changes(pinned: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """One line a package that is installed in another version, by name; how a version was built (+cpu) is left out."""
    return [
        f"{name} {pinned[name]} -> {installed[name]}"
        for name in sorted(pinned)
        if name in installed and installed[name].partition("+")[0] != pinned[name].partition("+")[0]
    ]


def main(argv: Sequence[str]) -> None:
    if len(argv) != 1:
        sys.stderr.write(f"python tests/versions/newer.py CONSTRAINTS: one file is needed; got {len(argv)}\n")
        sys.exit(2)
    from lowest import normal, pins  # beside this file

    pinned = pins(Path(argv[0]).read_text(encoding="utf-8"))
    found = changes(pinned, {normal(one.metadata["Name"]): one.version for one in distributions()})
    sys.stdout.write("".join(f"{line}\n" for line in found) or f"nothing newer than {argv[0]} resolves\n")


if __name__ == "__main__":
    main(sys.argv[1:])
