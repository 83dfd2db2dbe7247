"""The file store: compare-and-set, crashes, corruption, and a second process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgshunt.migration.store import Conflict, Corrupt, FileStore, StoreError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


def test_nothing_written_reads_as_generation_zero(path: Path) -> None:
    with FileStore(path) as store:
        assert store.read() == (0, {})


def test_a_document_survives_a_restart(path: Path) -> None:
    with FileStore(path) as store:
        assert store.write({"name": "é", "list": [1, None]}, 0) == 1
    with FileStore(path) as store:
        assert store.read() == (1, {"name": "é", "list": [1, None]})


def test_its_files_are_for_their_owner_only(path: Path) -> None:
    before = os.umask(0)
    try:
        with FileStore(path) as store:
            store.write({}, 0)
            store.write({}, 1)
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("state.json", "state.json.bak", "state.json.lock"), 0o600)


def test_a_write_from_an_old_generation_is_a_conflict_and_changes_nothing(path: Path) -> None:
    with FileStore(path) as store:
        store.write({"n": 1}, 0)
        store.write({"n": 2}, 1)
        with pytest.raises(Conflict, match="generation 2, not 1"):
            store.write({"n": 3}, 1)
        assert store.read() == (2, {"n": 2})


def test_the_generation_before_is_kept_as_backup(path: Path) -> None:
    with FileStore(path) as store:
        for number in range(3):
            store.write({"n": number}, number)
    assert json.loads(path.with_name("state.json.bak").read_text())["document"] == {"n": 1}


def test_a_second_store_on_the_same_file_is_refused_and_told_who_holds_it(path: Path) -> None:
    with FileStore(path):
        code = (
            "import sys, pathlib; from pgshunt.migration.store import FileStore; "
            "FileStore(pathlib.Path(sys.argv[1]))"
        )
        other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
        assert "held by another pgshunt (pid " in other.stderr
        with pytest.raises(StoreError, match="held by another"):
            FileStore(path)
    FileStore(path).close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_any_torn_or_changed_file_is_refused_and_left_as_it_is(path: Path, data: st.DataObject) -> None:
    path.unlink(missing_ok=True)
    path.with_name("state.json.bak").unlink(missing_ok=True)
    with FileStore(path) as store:
        store.write({"n": 1, "text": "abc"}, 0)
        whole = path.read_bytes()
        position = data.draw(st.integers(0, len(whole) - 2))
        if data.draw(st.booleans()):
            damaged = whole[:position]
        else:
            damaged = (
                whole[:position]
                + bytes([whole[position] ^ data.draw(st.integers(1, 255))])
                + whole[position + 1 :]
            )
        path.write_bytes(damaged)
        try:
            generation, document = store.read()
        except Corrupt:
            with pytest.raises(Corrupt):
                store.write({"n": 2}, 1)
            assert path.read_bytes() == damaged
        else:  # the change hit white space
            assert (generation, document) == (1, {"n": 1, "text": "abc"})


def test_a_missing_file_beside_its_backup_is_not_a_fresh_start(path: Path) -> None:
    with FileStore(path) as store:
        store.write({"n": 1}, 0)
        store.write({"n": 2}, 1)
        path.unlink()
        with pytest.raises(Corrupt, match="copy the latter"):
            store.read()


def test_a_crash_before_the_rename_leaves_the_old_document(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FileStore(path) as store:
        store.write({"n": 1}, 0)
        with monkeypatch.context() as patched:

            def crash(self: Path, target: Path) -> None:
                raise OSError("killed")

            patched.setattr(Path, "replace", crash)
            with pytest.raises(StoreError, match="killed"):
                store.write({"n": 2}, 1)
        assert store.read() == (1, {"n": 1})
        assert store.write({"n": 2}, 1) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_keeps_nobody_from_taking_the_lock(path: Path) -> None:
    path.with_name(path.name + ".lock").symlink_to("/dev/full")
    with FileStore(path) as store:
        assert store.read() == (0, {})
