"""List the commands of sat_lens."""

import sys
from pathlib import Path

from sat_lens.commands import list_commands

if __name__ == "__main__":
    sys.stdout.write(f"Commands (each knows --help):\n{list_commands(Path(__file__).parent, 'sat_lens')}\n")
