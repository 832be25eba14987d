"""Files written whole or not at all: a temporary name beside the target, flushed, then renamed."""

import hashlib
import os
import shutil
from pathlib import Path


def write_whole(path: Path | str, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) so that a reader, or a crash, never meets half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_folder(temporary: Path | str, final: Path | str) -> None:
    """Put the complete folder `temporary` in the place of `final`; both lie on one file system.

    Between the two renames `final` is absent for a moment and its old content stands beside it as
    `.NAME.old`; `recovered` puts that back if a crash fell into the gap.
    """
    temporary, final = Path(temporary), Path(final)
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        if old.exists():
            shutil.rmtree(old)
        os.replace(final, old)
    os.replace(temporary, final)
    if old.exists():
        shutil.rmtree(old)


def recovered(final: Path | str) -> Path:
    """`final`, after undoing a `replace_folder` that was cut off between its two renames."""
    final = Path(final)
    if final.name in ("", ".."):  # the folder one stands in, or the root: nothing was renamed onto it
        return final
    old = final.with_name(f".{final.name}.old")
    if old.exists() and not final.exists():
        os.replace(old, final)
    return final


def sha256_file(path: Path | str) -> str:
    """Hexadecimal sha256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
