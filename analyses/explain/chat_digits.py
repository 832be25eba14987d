"""The probabilities of the digits as a reply: a number with less noise than the one digit that was sampled."""

import math

from analyses.explain.chat import ChatReply


def digit_distribution(reply: ChatReply, most: int = 9) -> tuple[tuple[float, ...], float] | None:
    """Probabilities of the numbers 0 to `most` (at most 9) as the reply's first word, and their sum before they were
    made to sum to 1; None without log-probabilities or without any digit among them.

    Variants of a digit (with a space before it) count together. The alternatives of the first token that is not
    empty are read; where the token itself is not among them it is taken in.
    """
    for token in reply.token_logprobs or ():
        if token.token.strip():
            among = {token.token: token.logprob} | dict(token.top)
            mass = [
                math.fsum(math.exp(p) for text, p in among.items() if text.strip() == str(digit))
                for digit in range(most + 1)
            ]
            total = math.fsum(mass)
            return (tuple(m / total for m in mass), min(total, 1.0)) if total > 0 else None
    return None
