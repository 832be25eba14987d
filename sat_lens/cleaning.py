"""Clean text: mojibake repaired, one newline between paragraphs, no control characters."""

import re


def clean(text: str) -> str:
    """`text` with mojibake repaired, paragraphs joined by one newline, and no control character.

    Only the encoding is repaired (`ftfy.fix_encoding`): curly quotes stay curly.
    """
    if not text.isascii():
        text = _unmangled(text)
    text = re.sub(r"\r\n?|[\v\f\x85\u2028\u2029]", "\n", text).replace("\t", " ")
    text = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\ufeff\ufffe\uffff\ud800-\udfff]", "", text)
    return "\n".join(line.strip() for line in text.split("\n") if line.strip())


def _unmangled(text: str) -> str:
    import ftfy

    # A closing curly quote read as cp1252 has the undefined byte 9D, which often is lost.
    text = re.sub("\u00e2\u20ac\x9d|\u00e2\u20ac(?=[\\s\"'.,;:!?A-Za-z0-9]|$)", "\u201d", text)
    return ftfy.fix_encoding(text)
