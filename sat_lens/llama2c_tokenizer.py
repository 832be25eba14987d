"""llama2.c's tokenizer file (`tok512.bin`) as a BPE of the `tokenizers` package."""

import struct
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers


class TokenizerError(ValueError):
    """A tokenizer that cannot be read; the message is one line: what must hold, what came."""


def read_llama2c_pieces(path: Path) -> list[tuple[bytes, float]]:
    """Piece and score of each id of a llama2.c tokenizer file.

    Format: int32 longest piece; then for each id float32 score, int32 length, that many bytes.
    """
    data = path.read_bytes()
    pieces: list[tuple[bytes, float]] = []
    at = 4
    while at < len(data):
        if at + 8 > len(data):
            raise TokenizerError(f"{path} is cut off inside piece {len(pieces)}")
        score, length = struct.unpack_from("<fi", data, at)
        at += 8 + length
        if length < 0 or at > len(data):
            raise TokenizerError(f"{path} is no llama2.c tokenizer, or cut off: piece {len(pieces)} has {length} bytes")
        pieces.append((data[at - length : at], score))
    return pieces


def llama2c_tokenizer(path: Path) -> Tokenizer:
    """llama2.c's encoder as a BPE: 1 = BOS, 2 = EOS, byte b = id b+3, a space put before the text.

    llama2.c joins, again and again, the neighbours whose join has the highest score. Every way to split a
    piece in two known pieces becomes a merge here, ranked by the score of the piece.
    """
    pieces = read_llama2c_pieces(path)
    expected = [b"<0x%02X>" % byte for byte in range(256)]
    if [piece for piece, _ in pieces[3:259]] != expected:
        raise TokenizerError(f"a llama2.c tokenizer must have the bytes at ids 3 to 258; {path} has not")
    try:
        names = ["<unk>", "<s>", "</s>", *(piece.decode() for piece, _ in pieces[3:])]
    except UnicodeDecodeError as error:
        raise TokenizerError(f"the pieces of a llama2.c tokenizer must be UTF-8; {path}: {error}") from None
    ids = {name: index for index, name in enumerate(names)}
    joins = [
        (-pieces[ids[name]][1], ids[name], cut)
        for name in names[259:]
        for cut in range(1, len(name))
        if name[:cut] in ids and name[cut:] in ids
    ]
    merges = [(names[index][:cut], names[index][cut:]) for _, index, cut in sorted(joins)]
    tokenizer = Tokenizer(models.BPE(ids, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer
