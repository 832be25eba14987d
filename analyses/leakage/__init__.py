"""Does the mask tell the next token? See `python -m analyses.leakage --help`."""
