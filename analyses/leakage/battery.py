"""The whole battery: every test on one model, corrected together, and what it comes to in one line.

Tests are of five kinds, and the first two answer the question by themselves:

    structure   what the architecture promises: the mask of a position is chosen by, and used at, that position alone
    message     the ablated stream does with its mask what only a message would make it do
    worth       what the own mask is worth to the ablated stream, be it as a message or by naming what is relevant
    held        masks hold bits of the next token or of the prediction, whether or not anything reads them; those of a
                trained local head do, since to know which units matter is to know something of what comes
    route       whether the trunk would learn to say more by its mask if it were trained on (`gradient_route`)
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from tqdm import tqdm

from analyses import needs
from analyses.labels.token_classes import token_classes
from analyses.leakage.blank import blank
from analyses.leakage.decoder import decoder
from analyses.leakage.depth import depth
from analyses.leakage.finding import Finding
from analyses.leakage.gradient_route import gradient_route, training_rows
from analyses.leakage.information import information
from analyses.leakage.ladder import ladder
from analyses.leakage.losses import losses
from analyses.leakage.minimal_pairs import minimal_pairs
from analyses.leakage.observed import Observed, observed
from analyses.leakage.own_prediction import own_prediction
from analyses.leakage.random_heads import random_heads
from analyses.leakage.soft_hard import soft_hard
from analyses.leakage.structure import structure
from analyses.leakage.swap import swap
from analyses.leakage.unit_permutation import unit_permutation
from analyses.leakage.usage import usage
from analyses.leakage.verdict import summary, verdict, verdict_table
from analyses.result import Result
from analyses.texts import Stories
from sat_lens.distributed import alone, dealt, gather_texts, world_size

STEPS, ROWS, JUDGED_ON = 60, 4, 40
"""Of a retraining: steps, rows a step; stories that it is judged on."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What every test is given.

    Args:
        model: with masks.
        stories: that it is asked about.
        observed: both of its streams on them.
        heads: the model with random heads, a draw each; `controls`, what those do on the same stories.
        seed: of everything that is drawn.
        quick: leave out what takes long.
        more: stories to retrain on, which nothing is judged by; None: no retraining.
    """

    model: Any
    stories: Stories
    observed: Observed
    heads: tuple[Any, ...]
    controls: tuple[Observed, ...]
    seed: int = 0
    quick: bool = False
    more: Stories | None = None


def case_of(
    model: Any,
    stories: Stories,
    *,
    n_controls: int = 4,
    seed: int = 0,
    quick: bool = False,
    more: Stories | None = None,
) -> Case:
    """Run the model, and as many draws of random heads on its trunk, over the stories.

    Raises:
        ValueError: a model without masks, too few stories, or too little memory.
    """
    seen = observed(model, stories)
    heads = tuple(random_heads(model, 1000 * seed + i + 1) for i in range(n_controls))
    return Case(model, stories, seen, heads, tuple(observed(one, stories) for one in heads), seed, quick, more)


def _losses(case: Case) -> list[Finding]:
    tokenizer = case.model.tokenizer
    classes = None if tokenizer is None else token_classes(tokenizer, case.observed.d_vocab)
    return losses(case.observed, classes, case.controls, seed=case.seed)


def _swap(case: Case) -> list[Finding]:
    n_stories, n_donors = (20, 4) if case.quick else (80, 8)
    return swap(
        case.model, case.stories, case.observed, case.controls,
        n_donors=n_donors, n_stories=n_stories, seed=case.seed,
    )  # fmt: skip


def _decoder(case: Case, of: str) -> list[Finding]:
    return [decoder(case.observed, case.controls, of=of, by_layer=not case.quick, seed=case.seed)]


def _minimal_pairs(case: Case) -> list[Finding]:
    found = minimal_pairs(case.model, case.heads, seed=case.seed)
    return [] if found is None else [found]


def _gradient_route(case: Case) -> list[Finding]:
    if case.more is None:
        return []
    length = min(case.model.cfg.n_ctx + 1, int(case.more.lengths.sum()))
    rows = training_rows(case.more, steps=STEPS, batch_size=ROWS, length=length, seed=case.seed)
    judged_on = case.stories.subset(torch.arange(min(JUDGED_ON, case.stories.n)))
    return [gradient_route(case.model, judged_on, rows, seed=case.seed)]


def _of_case(test: Callable[..., Finding]) -> Callable[[Case], list[Finding]]:
    return lambda case: [test(case.model, case.stories, case.observed, case.controls, seed=case.seed)]


TESTS: dict[str, tuple[str, Callable[[Case], list[Finding]]]] = {
    "structure": ("structure", lambda case: structure(case.model, case.stories, case.observed, seed=case.seed)),
    "blank": ("message", _of_case(blank)),
    "swap": ("message", _swap),
    "ladder": ("worth", _of_case(ladder)),
    "minimal pairs": ("message", _minimal_pairs),
    "unit permutation": (
        "message",
        lambda case: [unit_permutation(case.model, case.stories, case.observed, seed=case.seed)],
    ),
    "soft and hard": ("worth", _of_case(soft_hard)),
    "own prediction": (
        "worth",
        lambda case: [own_prediction(case.model, case.stories, case.observed, case.heads, seed=case.seed)],
    ),
    "loss inversion": ("message", _losses),
    "decoder": ("held", lambda case: _decoder(case, "target")),
    "decoder of prediction": ("held", lambda case: _decoder(case, "prediction")),
    "mutual information": ("held", lambda case: [information(case.observed, case.controls, seed=case.seed)]),
    "depth": ("held", _of_case(depth)),
    "usage": ("held", lambda case: [usage(case.observed)]),
    "gradient route": ("route", _gradient_route),
}
"""By name: the kind of the test, and what runs it."""


LONGEST = ("decoder", "decoder of prediction", "depth", "gradient route", "ladder", "own prediction", "soft and hard")
"""Tests that take most of the time, longest first, about."""
UNITS = {"excess": "as in the column unit", "p_holm": "probability", "n": "positions", "n_stories": "stories"}
TEXTS = 8
"""Stories whose tokens are kept, for the view of them."""


def battery(case: Case, tests: Iterable[str] = tuple(TESTS), *, progress: bool = False) -> Result:
    """Run the tests, correct them together, and say what they come to.

    Args:
        tests: names of TESTS.
        progress: show it on stderr.

    Returns:
        A row a finding, strongest first: `kind, test, verdict, excess` (value - null), `ci_low, ci_high` (95 %, of the
        excess), `unit, p_holm` (corrected for all findings), `value, null, smallest, margin, relevant, p, n, n_stories,
        measure`; all but p and counts in the row's `unit`. The meta has `verdict`,
        `summary` (one line), `details` by test, `seconds` by name, the `knobs`, and the first stories as `texts`.

    Raises:
        ValueError: an unknown test, or too few stories.
    """
    names = list(tests)
    if unknown := [name for name in names if name not in TESTS]:
        raise ValueError(f"tests of leakage are {', '.join(TESTS)}; got {unknown[0]!r}")
    found = _found(case, names, progress)
    findings: dict[str, list[Finding]] = {}
    for name in names:
        findings.setdefault(TESTS[name][0], []).extend(Finding(**of) for of in found[name]["findings"])
    seconds = {name: found[name]["seconds"] for name in names}
    table = verdict_table(findings)
    meta = {
        "verdict": verdict(table),
        "summary": summary(table),
        "knobs": {"n_stories": case.stories.n, "n_controls": len(case.heads), "seed": case.seed, "quick": case.quick},
        "details": {one.test: one.detail for part in findings.values() for one in part},
        "seconds": seconds,
        "texts": _tokens(case),
    }
    told = meta["details"].get("blank stream", {}).get("bits_of_token", {})
    meta["token_texts"] = {i: _text(case.model.tokenizer, int(i)) for i in told}
    return Result("leakage", table, UNITS, meta)


def _found(case: Case, names: Sequence[str], progress: bool) -> dict[str, Any]:
    """What every test finds, and the seconds that it takes; several processes deal the tests, the longest first."""
    if world_size() > 1:
        names = sorted(names, key=lambda name: LONGEST.index(name) if name in LONGEST else len(LONGEST))
    here = {}
    for name in tqdm(list(dealt(names)), "tests", disable=None if progress else True):
        start = time.perf_counter()
        with alone():
            findings = [dataclasses.asdict(one) for one in TESTS[name][1](case)]
        here[name] = {"findings": findings, "seconds": round(time.perf_counter() - start, 2)}
    return {name: of for text in gather_texts(json.dumps(here)) for name, of in json.loads(text).items()}


def leakage(
    model: Any,
    stories: Stories,
    *,
    more: Stories | None = None,
    quick: bool = False,
    n_controls: int = 4,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Does the mask tell the next token? The battery on one model and some stories (`case_of`, `battery`)."""
    needs.require(model, "leakage")
    case = case_of(model, stories, n_controls=n_controls, seed=seed, quick=quick, more=more)
    return battery(case, progress=progress)


def _tokens(case: Case) -> list[list[str]]:
    """The tokens of the first stories as text."""
    rows = zip(case.stories.tokens[:TEXTS].tolist(), case.stories.lengths[:TEXTS].tolist(), strict=True)
    return [[_text(case.model.tokenizer, token) for token in row[:length]] for row, length in rows]


def _text(tokenizer: Any, token: int) -> str:
    return f"id {token}" if tokenizer is None else tokenizer.decode([token])
