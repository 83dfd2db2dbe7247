"""Reads which settings a client asks for in its startup packet.

PostgreSQL applies them once the client is authenticated (process_startup_options in postinit.c): first the
command line in `options`, then the parameters by name. This only says what they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from pgshunt.protocol.errors import PgError

SYNTAX_ERROR = "42601"

# pg_split_opts (postinit.c): arguments are separated by white space, a backslash takes the next byte as it
# is.
_ARGUMENT = re.compile(rb"(?:\\.|[^\\\s])+", re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


def session_settings(parameters: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Settings by name, in the order in which they take effect; `parameters` are those of NeedWelcome.

    Raises PgError (FATAL 42601, as PostgreSQL) for a command line with anything but `-c name=value` and
    `--name=value`. PostgreSQL knows some more switches, all of them short for settings that can be written
    like this.
    """
    by_name = {name: value for name, value in parameters.items() if name != b"options"}
    return dict(_command_line(parameters.get(b"options", b""))) | by_name


def _command_line(options: bytes) -> Iterator[tuple[bytes, bytes]]:
    arguments = (_ESCAPED.sub(rb"\1", found) for found in _ARGUMENT.findall(options))
    for argument in arguments:
        if argument.startswith(b"--"):
            switch, assignment = "--", argument[2:]
        elif argument.startswith(b"-c"):
            switch, assignment = "-c ", argument[2:] or next(arguments, b"")
        else:
            raise _syntax_error(f"invalid command-line argument for server process: {_text(argument)}")
        name, equals, value = assignment.partition(b"=")
        if not equals:
            raise _syntax_error(f"{switch}{_text(name)} requires a value")
        yield name.replace(b"-", b"_"), value


def _syntax_error(message: str) -> PgError:
    return PgError(message, sqlstate=SYNTAX_ERROR, hint="Write settings as -c name=value or --name=value.")


def _text(argument: bytes) -> str:
    return argument.decode("utf-8", "surrogateescape")
