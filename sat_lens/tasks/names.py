"""Which tasks there are by name, and how each can be corrupted; strings alone, for command lines."""

CORRUPTIONS: dict[str, dict[str, str]] = {
    "ioi": {
        "fresh": '"A B .. B" -> "X Y .. Z": who the names are and which one comes back; no name is left',
        "swap": '"A B .. B" -> "A B .. A": who acts; the answer flips, at S2 alone',
        "io": '"A B .. B" -> "X B .. B": who the receiver is; B still comes back, but A is not there to be copied',
        "s1": '"A B .. B" -> "A X .. B": that B came before; a model that just avoids the actor still says A',
        "s2": '"A B .. B" -> "A B .. X": that B comes back; A and B are equally likely',
    },
    "gendered_pronoun": {
        "name": '"Lily .. because" -> "Tom .. because": the name\'s gender; the answer flips, at the name alone',
    },
    "induction": {
        "fresh": '"A B .. C D .. A" -> "P Q .. R S .. A": the whole first part; neither B nor D was there',
        "swap": '"A B .. C D .. A" -> "A D .. C B .. A": what followed A; the answer flips',
        "match": '"A B .. C D .. A" -> "P B .. C D .. A": that A stood before B; nothing asks for B any more',
    },
    "repeated_name": {
        "fresh": '"Tom Hill and Ann Reed .. Tom" -> "Bob Cook and Sue Wood .. Tom": the whole first mention',
        "swap": '"Tom Hill and Ann Reed .. Tom" -> "Tom Reed and Ann Hill .. Tom": who has which; the answer flips',
        "match": '"Tom Hill and Ann Reed .. Tom" -> "Bob Hill and Ann Reed .. Tom": that Tom is the one before Hill',
    },
    "agreement": {
        "subject": '"The boys near the tree" -> "The boy near the tree": the number of the subject; the answer flips',
    },
    "greater_than": {
        "01": '"from the year 1732 to the year 17" -> "from the year 1701 ..": the year; every later one fits',
    },
}  # fmt: skip
"""What a counterfactual changes, and so what a circuit found with it is about; the first is the default."""

TASKS: tuple[str, ...] = tuple(CORRUPTIONS)


def checked_corruption(task: str, corrupt: str | None) -> str:
    """The corruption of that name, the task's first one for None.

    Raises:
        ValueError: a name that the task does not have.
    """
    known = CORRUPTIONS[task]
    if corrupt is None:
        return next(iter(known))
    if corrupt not in known:
        raise ValueError(f"{task} is corrupted by {', '.join(known)}; got {corrupt!r}")
    return corrupt
