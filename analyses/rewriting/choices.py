"""The names that the command line and the modules behind it share."""

RULES = ("token", "ngram", "n2g", "tree")
EXPLAINERS = ("rules", "http", "hf", "replay")
CALIBRATIONS = ("none", "linear", "linear-maximum", "affine", "isotonic", "quantile")
ORDERS = ("score", "random", "density")
KEEPS = ("all", "topk")
ORACLES = ("none", "active", "value", "both")
MISSING = ("refuse", "mask")
RANKINGS = ("r", "detection")
HTTP_FLAGS = ("url", "model", "key_variable", "max_calls", "max_tokens", "timeout", "threads")
CODER_FLAGS = {
    "kind": "skip", "layer": None, "site": None, "stream": "clean", "latents": None, "k": None, "tokens": None,
    "coder": None, "name": None,
}  # fmt: skip
"""Of a coder, which a run's folder has already; and what they are when they are not given."""
OF_THE_TEXTS = ("n", "corpus", "seed")
