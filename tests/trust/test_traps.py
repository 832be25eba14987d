"""Folders that are signed and yet lead elsewhere: links, paths out of the folder, in every kind of manifest."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.trust.oracle import outcome
from tests.trust.test_damaged_files import READERS, SIGNED, parts


@pytest.mark.parametrize("kind", SIGNED)
def test_a_signed_folder_leads_nowhere_else(kind, tmp_path, tried):
    reader = READERS[kind][0]
    (made := tmp_path / "made").mkdir()
    path = reader.make(made)
    kept = shutil.copytree(path, tmp_path / "kept")
    expected, n = reader.read(path), 0

    def refused(case: str) -> None:
        nonlocal n
        found = outcome(lambda: reader.read(path), (ValueError, OSError), case=case)
        not_looked_at = kind == "packed tokens" and found.value == expected  # it asks for its own names alone
        assert found.refusal or not_looked_at, f"{kind}: {case} was read"
        shutil.rmtree(path)
        shutil.copytree(kept, path)
        n += 1

    links = kind != "packed tokens"  # which are large, and may lie on another disk: what they hold is checked
    for file in [one.relative_to(path) for one in parts(path) if links]:
        (path / file).unlink()
        os.symlink(kept / file, path / file)
        refused(f"{file}, a link to its own content")
    for folder in [one.relative_to(path) for one in sorted(path.rglob("*")) if one.is_dir()]:
        shutil.rmtree(path / folder)
        os.symlink(kept / folder, path / folder)
        refused(f"{folder}, a link to its own content")
    (tmp_path / "secret").write_text("x")
    for place in ("../../secret", str(tmp_path / "secret"), "a/../../../secret"):
        content = json.loads((path / SIGNED[kind]).read_text())
        where = content if kind == "toy runs" else content["sha256" if kind == "coder folders" else "files"]
        where[place] = next(iter(where.values()))
        (path / SIGNED[kind]).write_text(json.dumps(content))
        refused(f"a manifest that names {place}")
    reader.read(path)
    tried(f"links and paths out of {kind}", n)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.pt"])
def test_an_archive_is_no_checkpoint_and_nothing_of_it_is_unpacked(name, tmp_path, tried):
    import tarfile
    import zipfile

    from sat_lens.checkpoint import load_any
    from sat_lens.convert import main as convert

    inside = tmp_path / "inside"
    inside.write_text("x")
    archive = tmp_path / name
    if name.endswith((".zip", ".pt")):
        with zipfile.ZipFile(archive, "w") as file:
            file.write(inside, "../escaped")
            file.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch escaped'\ntR.")
    else:
        with tarfile.open(archive, "w:gz" if name.endswith("gz") else "w") as file:
            file.add(inside, "../escaped")
    ways = {"load_any": lambda: load_any(str(archive))}
    if name == "a.pt":  # the one reader of such files
        (tmp_path / "config.yaml").write_text("{}")
        ways["convert"] = lambda: convert(
            [str(archive), str(tmp_path / "out"), "--config", str(tmp_path / "config.yaml")]
        )
    before = sorted(path for path in tmp_path.parent.rglob("*"))
    for way, read in ways.items():
        assert outcome(read, (ValueError, OSError), case=f"{way} {name}").refusal
    assert sorted(path for path in tmp_path.parent.rglob("*")) == before and not Path("escaped").exists()
    tried("archives as checkpoints")
