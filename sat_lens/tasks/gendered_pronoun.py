"""Gendered pronoun: does the model know who is a she and who is a he?

"Lily went to the park because" -> " she", not " he". Half of the names are girls', half boys'.

Source: the question is that of Mathwin et al., Identifying a preliminary circuit for predicting gendered
pronouns in GPT-2 small (2023); differs: templates and names fit stories, and the two genders are
balanced exactly. Names that girls and boys share are left out.
"""

import random
from typing import Any

from sat_lens.stories import NAMES, OBJECTS, PLACES, pronoun
from sat_lens.tasks.encoding import words_of_one_length
from sat_lens.tasks.pairs import Pair, balanced, checked, drawn_task
from sat_lens.tasks.task import Task, TaskError

TEMPLATES: tuple[str, ...] = (
    "{NAME} went to the {PLACE} because",
    "{NAME} was sad because",
    "{NAME} was very happy because",
    "{NAME} smiled because",
    "{NAME} was so tired that",
    "{NAME} liked the {OBJECT} so much that",
    "{NAME} wanted to play at the {PLACE}, but",
    "{NAME} looked for the {OBJECT}, but",
    "{NAME} was scared, so",
    "{NAME} lost the {OBJECT}, and then",
    "When {NAME} saw the {OBJECT},",
    "When {NAME} came to the {PLACE},",
    "After {NAME} played at the {PLACE},",
    "One day, {NAME} said that",
    "Once upon a time, {NAME} lived near the {PLACE}. Every day,",
    "One day, {NAME} found a {OBJECT} at the {PLACE}. Then",
)
SHARED_NAMES = frozenset("Alex Charlie Jo Joey Kim Pat Remy Sam Sammy Sandy".split())
"""Names of the stories that are a girl's or a boy's elsewhere."""


def gendered_pronoun_task(tokenizer: Any, *, n: int = 256, seed: int = 0, corrupt: str | None = None) -> Task:
    """`n` prompts, a pure function of the arguments; positions `name` (its first id) and `end`.

    Args:
        tokenizer: a transformers tokenizer.
        n: prompts; an odd number has one girl more.
        seed: any integer.
        corrupt: `name`: a name of the other gender, of equally many ids, stands in its place.

    Raises:
        TaskError: too few names, or no prompt that the tokenizer splits evenly.
    """
    checked("gendered_pronoun", n, corrupt)
    draw = random.Random(seed)
    usable = words_of_one_length([name for name in NAMES if name not in SHARED_NAMES], tokenizer, 5, "gendered_pronoun")
    names = {gender: [name for name in usable if pronoun(name) == gender] for gender in ("she", "he")}
    if not all(names.values()):
        raise TaskError("gendered_pronoun needs girls' and boys' names of equally many ids; the tokenizer has one kind")

    def pair(gender: str) -> Pair:
        other = "he" if gender == "she" else "she"
        template = draw.choice(TEMPLATES)
        words = {"PLACE": draw.choice(PLACES), "OBJECT": draw.choice(OBJECTS)}
        texts = [template.format(NAME=draw.choice(names[key]), **words) for key in (gender, other)]
        return Pair(*texts, f" {gender}", f" {other}", {"name": template.index("{NAME}")})

    return drawn_task("gendered_pronoun", tokenizer, balanced(n, ("she", "he"), draw), pair)
