"""How well one task can be removed at what cost to the other: the front of what was reached, and its area.

A point is (removed, kept): 1 - accuracy on the target, accuracy on the preserved task; (0, 1) is the intact model and
(1, 1) would be a clean removal. The area under the staircase of the front is one number for a whole curve, 0 to 1:
the mean, over all shares of the target that one may want removed, of the most that can then be kept (0 where so much
was never removed). Taking out parts that serve both tasks alike (kept = 1 - removed) gives at most 1/2.
"""

from typing import Any

import numpy as np


def front(removed: Any, kept: Any) -> tuple[np.ndarray, np.ndarray]:
    """The points that no other one matches in both, the intact model among them, by increasing `removed`."""
    x, y = np.append(0.0, np.asarray(removed, float)), np.append(1.0, np.asarray(kept, float))
    order = np.lexsort((-y, x))[::-1]  # from the most removed; of equals the best kept last
    points, best = [], -np.inf
    for i in order:
        if y[i] > best:
            if points and points[-1][0] == x[i]:
                points.pop()
            points.append((x[i], y[i]))
            best = y[i]
    found = np.asarray(points[::-1])
    return found[:, 0], found[:, 1]


def front_area(removed: Any, kept: Any) -> float:
    """Area under the staircase of the front, 0..1."""
    x, y = front(removed, kept)
    return float((np.diff(x, prepend=0.0) * y).sum())
