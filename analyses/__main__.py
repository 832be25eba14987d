"""Lists the questions: `python -m analyses`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from sat_lens.commands import Parser, list_commands, run


def main(argv: Sequence[str] | None = None) -> None:
    Parser(prog="python -m analyses", description="List the questions that can be asked.").parse_args(argv)
    questions = list_commands(Path(__file__).parent, "analyses")
    sys.stdout.write(f"Ask a question of a checkpoint (--help of each says what it needs of a model):\n{questions}\n")


if __name__ == "__main__":
    run(main)
