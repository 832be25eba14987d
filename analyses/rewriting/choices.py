"""The names that the command line and the modules behind it share."""

RULES = ("token", "ngram", "n2g", "tree")
EXPLAINERS = ("rules", "http", "hf", "replay")
CALIBRATIONS = ("none", "linear", "linear-maximum", "affine", "isotonic", "quantile")
ORDERS = ("score", "random")
KEEPS = ("all", "topk")
ORACLES = ("none", "active", "value", "both")
MISSING = ("refuse", "mask")
RANKINGS = ("r", "detection")
