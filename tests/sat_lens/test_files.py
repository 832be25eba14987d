"""Files and folders written whole or not at all."""

import errno
import os
import re
import shutil
import stat

import pytest

from sat_lens import files
from sat_lens.files import recovered, replace_folder, sha256_file, write_whole


def test_write_whole_writes_text_as_utf8_and_bytes_as_they_are(tmp_path):
    write_whole(tmp_path / "deep" / "er" / "text.txt", "façade\n")
    write_whole(tmp_path / "bytes.bin", b"\x00\xff")
    assert (tmp_path / "deep" / "er" / "text.txt").read_bytes() == "façade\n".encode()
    assert (tmp_path / "bytes.bin").read_bytes() == b"\x00\xff"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "file.txt"
    write_whole(path, "old")

    def crash(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, crash)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


def folder(path, content: str):
    path.mkdir()
    (path / "content").write_text(content)
    return path


def test_replace_folder_puts_the_new_one_in_the_place_of_the_old(tmp_path):
    folder(tmp_path / "final", "old")
    (tmp_path / "final" / "more").write_text("of the old")
    replace_folder(folder(tmp_path / "new", "new"), tmp_path / "final")
    assert os.listdir(tmp_path) == ["final"] and os.listdir(tmp_path / "final") == ["content"]
    assert (tmp_path / "final" / "content").read_text() == "new"


def test_replace_folder_makes_a_folder_that_was_not_there(tmp_path):
    replace_folder(folder(tmp_path / "new", "new"), tmp_path / "final")
    assert (tmp_path / "final" / "content").read_text() == "new"


@pytest.mark.parametrize("crash_at", [1, 2])
def test_a_crash_at_either_rename_can_be_recovered(tmp_path, monkeypatch, crash_at):
    folder(tmp_path / "final", "old")
    new, calls, replace = folder(tmp_path / "new", "new"), [], os.replace

    def crashing(*args):
        calls.append(args)
        if len(calls) == crash_at:
            raise KeyboardInterrupt
        replace(*args)

    monkeypatch.setattr("sat_lens.files.exchanged", lambda one, other: False)
    monkeypatch.setattr(os, "replace", crashing)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(new, tmp_path / "final")
    monkeypatch.undo()
    assert recovered(tmp_path / "final") == tmp_path / "final"
    assert (tmp_path / "final" / "content").read_text() == "old"
    replace_folder(new, tmp_path / "final")
    assert (tmp_path / "final" / "content").read_text() == "new" and os.listdir(tmp_path) == ["final"]


class Disk:
    """What is asked of the disk, in order: ("flush" or "name", what)."""

    def __init__(self, monkeypatch, root):
        self.asked = []
        flush, replace, remove, exchanged = os.fsync, os.replace, shutil.rmtree, files.exchanged

        def note(what, act, at):
            def doing(*args, **knobs):
                where = os.readlink(f"/proc/self/fd/{args[0]}") if what == "flush" else str(args[at])
                self.asked.append((what, re.sub(r"^\.f\..*part$", "PART", os.path.relpath(where, root))))
                return act(*args, **knobs)

            return doing

        monkeypatch.setattr(os, "fsync", note("flush", flush, 0))
        monkeypatch.setattr(os, "replace", note("name", replace, 1))
        monkeypatch.setattr(shutil, "rmtree", note("remove", remove, 0))
        monkeypatch.setattr(files, "exchanged", note("exchange", exchanged, 1))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="what a descriptor is of cannot be asked")
def test_content_is_on_the_disk_before_its_name_and_that_before_the_old_content_goes(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, tmp_path)
    write_whole(tmp_path / "f", "text")
    assert disk.asked == [("flush", "PART"), ("name", "f"), ("flush", ".")]
    for i, content in enumerate(("old", "new")):
        inside = folder(tmp_path / f"{i}.part", content) / "state"
        inside.mkdir()
        (inside / "tensors").write_text("x")
        disk.asked.clear()
        replace_folder(tmp_path / f"{i}.part", tmp_path / "final")
        content_first = [("flush", f"{i}.part{end}") for end in ("/content", "", "/state/tensors", "/state")]
        if i == 0:
            assert disk.asked == [*content_first, ("name", "final"), ("flush", ".")]
    if disk.asked[5] == ("flush", "."):  # the two could be exchanged
        end = [("exchange", "final"), ("flush", "."), ("remove", "1.part")]
    else:
        names = [("name", ".final.old"), ("name", "final")]
        end = [("exchange", "final"), *names, ("flush", "."), ("remove", ".final.old")]
    assert disk.asked == [*content_first, *end]
    assert (tmp_path / "final" / "content").read_text() == "new"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_only_a_folder_that_cannot_be_flushed_is_passed_over(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def refusing(opened):
        if stat.S_ISDIR(os.fstat(opened).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(opened)

    monkeypatch.setattr(os, "fsync", refusing)
    if number == errno.EINVAL:
        write_whole(tmp_path / "f", "text")
    else:
        with pytest.raises(OSError, match="Input/output error"):
            write_whole(tmp_path / "f", "text")


def test_recovered_leaves_a_complete_folder_and_what_never_was_alone(tmp_path):
    folder(tmp_path / ".final.old", "old")
    folder(tmp_path / "final", "new")
    assert (recovered(tmp_path / "final") / "content").read_text() == "new"
    assert recovered(tmp_path / "other") == tmp_path / "other" and not (tmp_path / "other").exists()


def test_sha256_is_the_known_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "abc") == expected


def test_sha256_reads_files_larger_than_a_piece(tmp_path):
    (tmp_path / "a").write_bytes(b"a" * 1_000_000)
    (tmp_path / "b").write_bytes(b"a" * (2**20 + 5) + b"b")
    (tmp_path / "c").write_bytes(b"a" * (2**20 + 5) + b"c")
    million = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"  # FIPS 180-2, appendix B.3
    assert sha256_file(tmp_path / "a") == million
    assert sha256_file(tmp_path / "b") != sha256_file(tmp_path / "c")


@pytest.mark.parametrize("beside", [False, True])
def test_a_lock_leaves_nothing_where_nothing_was_written(beside, tmp_path):
    run = tmp_path / "runs" / "run"
    with pytest.raises(RuntimeError), files.locked(run, beside):
        assert [path.name for path in tmp_path.rglob("*lock")] == [".run.lock" if beside else files.LOCK]
        raise RuntimeError("refused after all")
    assert not (tmp_path / "runs").exists()
    with files.locked(run, beside):
        run.mkdir(exist_ok=True)
        (run / "log").touch()
    assert [path.name for path in run.parent.rglob("*")] == ["run", "log"]


@pytest.mark.skipif(files.fcntl is None, reason="no locks here")
@pytest.mark.parametrize("again", [False, True])
def test_a_lock_that_its_holder_removed_before_we_had_it_is_asked_for_again(again, tmp_path, monkeypatch):
    """Else two could write: one with a lock on a file that has no name any more, and one with the next file's."""
    asked, lock = [], tmp_path / "run" / files.LOCK
    flock = files.fcntl.flock

    def late(file, how):
        if not asked:
            lock.unlink()
            if again:
                lock.touch()
        asked.append(os.fstat(file.fileno()).st_ino)
        flock(file, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with files.locked(tmp_path / "run"):
        assert len(asked) == 2 and lock.stat().st_ino == asked[1]
        with pytest.raises(ValueError, match="another process"), files.locked(tmp_path / "run"):
            pass
