"""Greater-than: "The war lasted from the year 1732 to the year 17" -> a later year, not an earlier one.

Source: arXiv 2305.00586; differs: the published metric is the probability of all later two-digit years
minus that of all earlier ones. Here one year k later is compared with the year k earlier (k 1 to 10), as
the logit difference of a single pair; averaged over prompts both fall with the same sharp cut at the
year. The counterfactual, start year 01, is the published one. Events are a list of our own.

The right year is always the later one. A fixed guess of one year (22 to 79) is right as often as wrong,
but a model that prefers later years whatever the prompt says would pass; `performance` catches it,
because it prefers them on the counterfactual just as much.
"""

import random
from typing import Any

from sat_lens.tasks.encoding import continuation_ids
from sat_lens.tasks.pairs import Pair, checked, drawn_task
from sat_lens.tasks.task import Task, TaskError

TEMPLATE = "The {EVENT} lasted from the year {CENTURY}{YEAR:02d} to the year {CENTURY}"
EVENTS: tuple[str, ...] = tuple(
    (
        "war siege voyage journey trip expedition drought plague strike reign famine festival debate dispute "
        "trial project reform revolt conflict alliance occupation campaign marriage friendship tour mission"
    ).split()
)
CENTURIES = range(11, 18)


def greater_than_task(tokenizer: Any, *, n: int = 256, seed: int = 0, corrupt: str | None = None) -> Task:
    """`n` prompts, a pure function of the arguments; positions `year` (of the start, without the century) and `end`.

    A tokenizer that writes digits one by one is asked for the tens alone: of "32" the answer is 4 or 5,
    the wrong answer 2 or 1.

    Args:
        tokenizer: a transformers tokenizer.
        n: prompts.
        seed: any integer.
        corrupt: `01`: the start is the century's year 01.

    Raises:
        TaskError: a tokenizer that has no ids of its own for the last two digits of a year.
    """
    checked("greater_than", n, corrupt)
    draw = random.Random(seed)
    starts, steps = _years(tokenizer)

    def pair(_: int) -> Pair:
        start, step = draw.choice(starts), draw.choice(steps)
        words = {"EVENT": draw.choice(EVENTS), "CENTURY": draw.choice(CENTURIES)}
        text = TEMPLATE.format(YEAR=start, **words)
        return Pair(
            text=text,
            corrupt=TEMPLATE.format(YEAR=1, **words),
            answer=f"{start + step:02d}",
            wrong_answer=f"{start - step:02d}",
            places={"year": text.index(f"{start:02d} to the year")},
        )

    return drawn_task("greater_than", tokenizer, range(n), pair)


def _years(tokenizer: Any) -> tuple[range, range]:
    """Start years, and how far answers lie from them; in tens, where a digit is an id."""
    try:
        n_ids = {len(continuation_ids("to the year 17", f"{year}", tokenizer)) for year in range(30, 40)}
    except TaskError:
        n_ids = set()
    if n_ids == {1}:
        return range(12, 90), range(1, 11)
    if n_ids == {2}:
        return range(30, 80), range(10, 21, 10)
    raise TaskError("greater_than needs a tokenizer that writes years in two-digit ids or digit by digit")
