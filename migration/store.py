"""Keeps one JSON document safely, with compare-and-set on its generation.

A store may be shared by several supervisors (etcd, later): each write names the generation it was made from.
`FileStore` is the local one: after a crash at any moment the file holds one whole document.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, TextIO

from pgshunt.migration.private_file import private

Document = Mapping[str, Any]

ENVELOPE: Final = "pgshunt state 1"


class StoreError(Exception):
    """The document could not be read or kept; the message says what to do."""


class Conflict(StoreError):
    """Somebody else has written since: read again, decide again, write again."""


class Corrupt(StoreError):
    """What is stored is not what was written."""


class Store(Protocol):
    """Blocking: call from a thread."""

    def read(self) -> tuple[int, Document]:
        """Generation and document; (0, {}) when nothing was ever written. Raises StoreError."""

    def write(self, document: Document, expected_generation: int) -> int:
        """Replaces the document and returns its new generation. Raises Conflict, StoreError."""


class FileStore:
    """One file, and `<file>.bak` with the generation before; one process at a time holds `<file>.lock`."""

    def __init__(self, path: Path) -> None:
        """Takes the lock. Raises StoreError if another process has it or the directory cannot be written."""
        self.path = path
        self.backup = path.with_name(path.name + ".bak")
        self._next = path.with_name(path.name + ".next")
        self._turn = threading.Lock()
        self._lock: TextIO = self._take_lock(path.with_name(path.name + ".lock"))

    def __enter__(self) -> FileStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back."""
        self._lock.close()

    def read(self) -> tuple[int, Document]:
        with self._turn:
            return self._read()

    def write(self, document: Document, expected_generation: int) -> int:
        with self._turn:
            generation, _ = self._read()
            if generation != expected_generation:
                raise Conflict(f"{self.path} is at generation {generation}, not {expected_generation}")
            try:
                self._replace(generation + 1, document)
            except OSError as error:
                raise StoreError(f"cannot write {self.path}: {error}") from error
            return generation + 1

    def _read(self) -> tuple[int, Document]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            if self.backup.exists():
                raise Corrupt(
                    f"{self.path} is gone but {self.backup} is there: "
                    "copy the latter to the former, or remove both"
                ) from None
            return 0, {}
        except (OSError, UnicodeDecodeError) as error:
            raise Corrupt(f"cannot read {self.path}: {error}; {self._remedy()}") from error
        try:
            envelope = json.loads(text)
            generation, document = envelope["generation"], envelope["document"]
            intact = envelope["envelope"] == ENVELOPE and envelope["checksum"] == _checksum(
                generation, document
            )
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"{self.path} is torn or not ours: {error}; {self._remedy()}") from error
        if not intact:
            raise Corrupt(f"{self.path} does not match its checksum; {self._remedy()}")
        return generation, document

    def _replace(self, generation: int, document: Document) -> None:
        envelope = {
            "envelope": ENVELOPE,
            "generation": generation,
            "checksum": _checksum(generation, document),
            "document": document,
        }
        with open(self._next, "w", encoding="utf-8", opener=private) as file:
            json.dump(envelope, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        if self.path.exists():
            # A second name for the old file, then the new one over the first: at no moment is there no file.
            self.backup.unlink(missing_ok=True)
            self.backup.hardlink_to(self.path)
        self._next.replace(self.path)
        _sync_directory(self.path.parent)

    def _remedy(self) -> str:
        if self.backup.exists():
            return (
                f"{self.backup} holds the generation before: "
                "check it and copy it over, or move both away to start anew"
            )
        return "move it away to start anew: stages and latched rollbacks are then forgotten"

    @staticmethod
    def _take_lock(path: Path) -> TextIO:
        try:
            file = open(path, "a+", encoding="ascii", opener=private)  # noqa: SIM115 - held while we live
        except OSError as error:
            raise StoreError(
                f"cannot open {path}: {error}; `state.path` must be in a directory we may write"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise StoreError(
                f"{path} is held by another pgshunt (pid {holder}): "
                "stop it, or give this one a `state.path` of its own"
            ) from None
        with contextlib.suppress(
            OSError
        ):  # a full disk: the lock holds all the same, only its holder has no name
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        return file


def _checksum(generation: int, document: Document) -> str:
    canonical = json.dumps([generation, document], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _sync_directory(directory: Path) -> None:
    """Makes a rename last: it is a change of the directory, not of the file."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
