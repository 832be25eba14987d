"""The text of a token as it stands in running text: with the space before its word."""

from typing import Any


def token_texts(tokenizer: Any, n: int) -> list[str]:
    """Texts of the first `n` ids; tokenizers whose decoder drops a leading space get it back."""
    texts, spellings = tokenizer.batch_decode([[i] for i in range(n)]), tokenizer.convert_ids_to_tokens(list(range(n)))
    return [_with_space(text, spelling) for text, spelling in zip(texts, spellings, strict=True)]


def _with_space(text: str, spelling: str | None) -> str:
    dropped = spelling is not None and spelling.startswith((" ", "\u2581")) and not text.startswith(" ")
    return f" {text}" if dropped else text
