"""Maximal munch: the longest item of the vocabulary that the text goes on with is the next token.

Over numbers it makes the tokens of an answer depend on all of its digits: `1023` is `102`, `3`, whether it was put
together from 10 and 23 or from 102 and 3. With single characters as the vocabulary it is the character tokenizer.
"""

from collections.abc import Iterable, Sequence

PAD, BEGIN, END, CONCAT, PLUS = " ", "B", "E", "C", "+"
SIGNS = (PAD, BEGIN, END, CONCAT, PLUS)


class MaximalMunch:
    """A greedy longest-match tokenizer.

    Args:
        vocabulary: items in the order of their ids; the first is the padding.

    Raises:
        ValueError: an item that is empty or comes twice.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = tuple(vocabulary)
        self.ids = {item: i for i, item in enumerate(self.vocabulary)}
        if "" in self.ids or len(self.ids) != len(self.vocabulary):
            raise ValueError("items of a vocabulary must be different and not empty")
        self.longest = max(map(len, self.vocabulary))

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def pad(self) -> int:
        """The id of padding."""
        return 0

    def encode(self, text: str) -> list[int]:
        """Ids of a text.

        Raises:
            ValueError: a place at which no item fits.
        """
        ids, at = [], 0
        while at < len(text):
            sizes = range(min(self.longest, len(text) - at), 0, -1)
            item = next((text[at : at + size] for size in sizes if text[at : at + size] in self.ids), None)
            if item is None:
                raise ValueError(f"no token for {text[at]!r}, character {at + 1} of {text!r}")
            ids.append(self.ids[item])
            at += len(item)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, padding left out."""
        return "".join(self.vocabulary[i] for i in ids if i != self.pad)


def number_tokenizer(operands: int) -> MaximalMunch:
    """Signs, and every number up to the largest sum of two numbers below `operands` (204 ids for 100)."""
    return MaximalMunch([*SIGNS, *map(str, range(2 * operands - 1))])


def character_tokenizer() -> MaximalMunch:
    """Signs and the ten digits: what is lost without maximal munch."""
    return MaximalMunch([*SIGNS, *"0123456789"])
