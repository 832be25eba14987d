"""Subject-verb agreement across a distractor: "The boys near the tree" -> " were", not " was".

Half of the subjects are plural; in half of the prompts of either number the distractor has the other
number, so that agreement with the nearest noun is right in half of them as well.

Source: arXiv 1611.01368 (the attractor between subject and verb), 2403.19647 (agreement across a
prepositional phrase as a circuit task); differs: nouns of stories, past tense alone, which stories are
told in, and both answers of one verb.
"""

import random
from typing import Any

from sat_lens.tasks.encoding import continuation_ids
from sat_lens.tasks.pairs import Pair, balanced, checked, drawn_task
from sat_lens.tasks.task import Task, TaskError

SUBJECTS: tuple[str, ...] = tuple(
    "boy girl friend kid dog cat bird duck frog bear rabbit horse cow pig lion bee squirrel animal".split()
)
DISTRACTORS: tuple[str, ...] = tuple("tree house car boat flower toy ball hat book cake chair door bed table".split())
TEMPLATES: tuple[str, ...] = (
    "The {SUBJECT} near the {DISTRACTOR}",
    "The {SUBJECT} by the {DISTRACTOR}",
    "The {SUBJECT} behind the {DISTRACTOR}",
    "The {SUBJECT} next to the {DISTRACTOR}",
    "The {SUBJECT} with the {DISTRACTOR}",
    "The little {SUBJECT} near the {DISTRACTOR}",
    "The happy {SUBJECT} from the {DISTRACTOR}",
    "One day, the {SUBJECT} near the {DISTRACTOR}",
    "Once upon a time, the {SUBJECT} by the {DISTRACTOR}",
    "It was a sunny day. The {SUBJECT} with the {DISTRACTOR}",
)
VERBS = {"singular": " was", "plural": " were"}
_FEWEST_PAIRS = 3


def agreement_task(tokenizer: Any, *, n: int = 256, seed: int = 0, corrupt: str | None = None) -> Task:
    """`n` prompts, a pure function of the arguments; positions `subject`, `distractor` (first ids) and `end`.

    Subjects are nouns whose two numbers have equally many ids, so that a counterfactual changes the
    number alone. A tokenizer that has fewer than three such nouns (llama2.c's 512 ids write the plural
    with an id more) gets another noun of the other number instead. Answers are ids of " was" and
    " were", the first where there are more.

    Args:
        tokenizer: a transformers tokenizer.
        n: prompts; exactly balanced where 4 divides it, in number where 2 does.
        seed: any integer.
        corrupt: `subject`: the subject in the other number.

    Raises:
        TaskError: no prompt that the tokenizer splits evenly.
    """
    checked("agreement", n, corrupt)
    draw = random.Random(seed)
    partners = _partners(tokenizer)
    kinds = [(number, attracts) for attracts in (True, False) for number in VERBS]

    def pair(kind: tuple[str, bool]) -> Pair:
        number, attracts = kind
        other = "plural" if number == "singular" else "singular"
        subject = draw.choice(sorted(partners[number]))
        words = (subject, draw.choice(partners[number][subject]))
        template, distractor = draw.choice(TEMPLATES), draw.choice(DISTRACTORS)
        distractor = _in_number(distractor, other if attracts else number)
        texts = [template.format(SUBJECT=word, DISTRACTOR=distractor) for word in words]
        places = {"subject": template.index("{SUBJECT}"), "distractor": texts[0].rindex(distractor)}
        return Pair(*texts, VERBS[number], VERBS[other], places)

    return drawn_task("agreement", tokenizer, balanced(n, kinds, draw), pair)


def _in_number(noun: str, number: str) -> str:
    return noun if number == "singular" else f"{noun}s"


def _partners(tokenizer: Any) -> dict[str, dict[str, list[str]]]:
    """By number, the usable subjects, each with the words of the other number that can stand in for it."""
    n_ids: dict[str, int] = {}
    for word in (_in_number(noun, number) for noun in SUBJECTS for number in VERBS):
        try:
            n_ids[word] = len(continuation_ids("The", f" {word}", tokenizer))
        except TaskError:
            continue
    forms = [(noun, _in_number(noun, "plural")) for noun in SUBJECTS]
    even = [(one, many) for one, many in forms if one in n_ids and n_ids[one] == n_ids.get(many)]
    if len(even) < _FEWEST_PAIRS:
        even = [(one, many) for one, _ in forms for _, many in forms
                if one in n_ids and n_ids[one] == n_ids.get(many)]  # fmt: skip
    if not even:
        raise TaskError("agreement needs singular and plural nouns of equally many ids; the tokenizer has none")
    found: dict[str, dict[str, list[str]]] = {"singular": {}, "plural": {}}
    for one, many in even:
        found["singular"].setdefault(one, []).append(many)
        found["plural"].setdefault(many, []).append(one)
    return found
