"""What the source published, to stand beside what is measured here; never ours.

Source: "Untangling Tasks in a Toy Transformer" and "Deeper Untangling" (the article that prints the sums).
"""

import pandas as pd

POINTS = pd.DataFrame(
    [(0.0, 1.00, 0.88), (0.1, 0.97, 0.59), (0.2, 0.94, 0.30)],
    columns=["tau_sum", "preserved_accuracy", "target_accuracy"],
).assign(target="concat", preserved="sum", order="sequential", source="published")
"""The concatenation removed, the sum kept; tau on the sum over about 50 examples, judged on the same."""

EXACT_MATCH = 0.981
"""Of 1,000 random validation examples."""

NON_ZERO = {0.0: 0.97, 0.01: 0.0015}
"""Weight of the L1 term -> share of latents that are not 0."""
