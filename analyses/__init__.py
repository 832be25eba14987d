"""Questions that are asked of a checkpoint; each runs as `python -m analyses.QUESTION CKPT`."""
