"""Files written whole or not at all: a temporary name beside the target, flushed, renamed, and the name flushed too.

What is reported as written outlives a loss of power: content is on the disk before its name is, and the name before
the call returns or an older content is removed.
"""

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

try:
    import fcntl
except ImportError:  # no Unix
    fcntl = None

LOCK = ".lock"
"""File by which a process holds a folder."""

ATTEMPTS, PAUSE_S = 20, 0.02


def write_whole(path: Path | str, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) so that a reader, or a crash, never meets half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_names(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush_names(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; where the system or file system cannot say, return at once."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (AttributeError, PermissionError):  # no Unix; a folder that may be written to and not be read
        return
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(opened)


def flush_folder(folder: Path) -> None:
    """Wait until all files of a folder, and their names, are on the disk."""
    for inside, _, names in os.walk(folder):
        for name in names:
            if not (path := Path(inside, name)).is_symlink():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        flush_names(Path(inside))


def regular(path: Path | str) -> Path:
    """The path, if it is a regular file: a pipe that nobody writes to could be waited for without end.

    Raises:
        FileNotFoundError: nothing is there. ValueError: something else is.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} must be a file; it is {'a folder' if path.is_dir() else 'a pipe or a device'}")
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return path


def temporary_beside(final: Path) -> Path:
    """A name beside `final` that is this process's own; what processes of this machine that died left is removed."""
    prefix, host = f".{final.name}.", re.sub(r"[^\w-]", "-", socket.gethostname())
    for left in final.parent.glob(f"{glob.escape(prefix)}{host}-*.part"):
        process = left.name[len(prefix) + len(host) + 1 : -len(".part")].partition("-")[0]
        if process.isdigit() and not _runs(int(process)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return final.with_name(f"{prefix}{host}-{os.getpid()}-{threading.get_ident()}.part")


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def locked(folder: Path | str, beside: bool = False) -> Iterator[None]:
    """Hold a folder, which is made, against other processes that ask for it; a process that dies lets go.

    What was made and stayed empty is removed at the end. Where the file system knows no locks, nothing is held.

    Args:
        beside: for a folder that is replaced as a whole: the lock stands beside it, and it is not made.

    Raises:
        ValueError: another process holds it.
    """
    whole = Path(folder).resolve()
    lock = whole.with_name(f".{whole.name}{LOCK}") if beside else whole / LOCK
    file, new = _held(lock)
    if file is None:
        raise ValueError(f"another process writes to {folder}; wait for its end, or choose another folder")
    try:
        yield
    finally:
        with file, contextlib.suppress(OSError):
            lock.unlink()
        _remove_empty(new)


def _held(lock: Path) -> tuple[IO[str] | None, list[Path]]:
    """The locked file, or None where another process has it; and the folders that were made for it.

    A holder that ends removes the file, and folders that stayed empty: what it removes between two steps of ours is
    made again, and a lock on a file that has no name any more, which would keep nobody out, is asked for again.
    """
    for last in [False] * (ATTEMPTS - 1) + [True]:
        new = [place for place in lock.parents if not place.exists()]
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = open(lock, "a", encoding="ascii")  # noqa: SIM115
        except OSError as error:
            _remove_empty(new)
            if last or not isinstance(error, (FileNotFoundError, FileExistsError)):
                raise
            time.sleep(PAUSE_S)
            continue
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None, []
        except OSError:  # no locks here
            return file, new
        if last or _still_named(file, lock):  # at last also where a file system gives a file two numbers
            return file, new
        file.close()
        time.sleep(PAUSE_S)
    raise AssertionError("the last attempt returns or raises")


def _still_named(file: IO[str], lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(lock))
    except OSError:
        return False


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove these, innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for place in folders:
            place.rmdir()


def replace_folder(temporary: Path | str, final: Path | str) -> None:
    """Put the complete folder `temporary` in the place of `final`; both lie on one file system.

    Where the system can exchange two folders at once, a reader meets the old one or the new one and never none.
    Elsewhere `final` is absent for a moment between two renames, while its old content stands beside it as
    `.NAME.old`; `recovered` puts that back if a crash fell into the gap. The new content is on the disk before its
    name is, and that before the old content is removed.
    """
    temporary, final = Path(temporary), Path(final)
    old = final.with_name(f".{final.name}.old")
    flush_folder(temporary)
    if final.exists() and exchanged(temporary, final):
        flush_names(final.parent)
        shutil.rmtree(temporary)  # the old content
    else:
        if final.exists():
            if old.exists():
                shutil.rmtree(old)
            os.replace(final, old)
        os.replace(temporary, final)
        flush_names(final.parent)
    if old.exists():
        shutil.rmtree(old)


def exchanged(one: Path, other: Path) -> bool:
    """Exchange two names at once; False where the system or the file system cannot (Linux can, on most)."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return swap(here, os.fsencode(one), here, os.fsencode(other), both) == 0


def part_of(final: Path) -> Path:
    """Where a folder that has one writer is made, and where its old content stands for a moment afterwards."""
    return final.with_name(f".{final.name}.part")


def recovered(final: Path | str) -> Path:
    """`final`, after undoing a `replace_folder` that was cut off between its two renames."""
    final = Path(final)
    if final.name in ("", ".."):  # the folder one stands in, or the root: nothing was renamed onto it
        return final
    old = final.with_name(f".{final.name}.old")
    if old.exists() and not final.exists():
        os.replace(old, final)
    return final


def strict_json(text: bytes | str) -> Any:
    """What JSON says. Raises: ValueError for what is not JSON, NaN, and a key that an object has twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("an object has the same key twice")
        return found

    def no_number(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a number of JSON")

    return json.loads(text, object_pairs_hook=once, parse_constant=no_number)


def sha256_file(path: Path | str) -> str:
    """Hexadecimal sha256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
