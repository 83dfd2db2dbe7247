"""Reads a list of users from a file in the form of PgBouncer's auth_file.

One user in a line, `"name" "password or verifier"`; a quote inside is doubled, `;` or `#` begins a comment.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath
from typing import Final

from pydantic import ValidationError

from pgshunt.config.model import User
from pgshunt.config.problem import Path, Problem

_LINE: Final = re.compile(r'\s*"((?:[^"]|"")*)"\s+"((?:[^"]|"")*)".*')
_NOTHING: Final = re.compile(r"\s*([;#].*)?")
_MD5: Final = re.compile(r"md5[0-9a-f]{32}")
_PATH: Final[Path] = ("auth", "users_file")


def read_users(file: FilePath, report: Callable[[Problem], None]) -> list[User]:
    """The users in `file`; what is wrong with it goes to `report`, never with a secret in it."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        report(Problem(_PATH, f"{file}: {reason}", "name a text file that pgshunt's user can read"))
        return []
    return [user for number, line in enumerate(lines, 1) for user in _read(line, f"{file}:{number}", report)]


def _read(line: str, place: str, report: Callable[[Problem], None]) -> Iterator[User]:
    if _NOTHING.fullmatch(line):
        return
    match = _LINE.fullmatch(line)
    if match is None:
        report(Problem(_PATH, f"{place}: no user", 'write "name" "password or verifier"'))
        return
    name, secret = (text.replace('""', '"') for text in match.groups())
    if _MD5.fullmatch(secret):
        report(
            Problem(
                _PATH, f"{place}: {name} has an MD5 hash", "give the password or a SCRAM-SHA-256 verifier"
            )
        )
        return
    field = "verifier" if secret.startswith("SCRAM-SHA-256$") else "password"
    try:
        yield User.model_validate({"name": name, field: secret})
    except ValidationError:
        report(Problem(_PATH, f"{place}: no name, or no {field}", 'write "name" "password or verifier"'))
