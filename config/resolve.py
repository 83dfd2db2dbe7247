"""Reads the secrets a configuration points to, makes its paths absolute, and tries its certificates."""

import ssl
import stat
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import TypeVar

from pgshunt.config import tls
from pgshunt.config.model import Admin, Config, Database, ListenTls, SecretSection, ServerTls
from pgshunt.config.problem import Path, Problem, Severity
from pgshunt.config.secret import Secret
from pgshunt.config.users import read_users

S = TypeVar("S", bound=SecretSection)
T = TypeVar("T", ListenTls, ServerTls)
D = TypeVar("D", bound=Database)


def resolve(config: Config, folder: FilePath, environ: Mapping[str, str]) -> tuple[Config, list[Problem]]:
    """`config` with every secret inline and every path absolute, and what could not be read.

    Paths are relative to `folder`, the one the configuration file stands in, wherever pgshunt is started.
    """
    problems: list[Problem] = []

    def secured(section: S, path: Path) -> S:
        return _secured(section, path, folder, environ, problems.append)

    def placed(section: T, path: Path, make_context: Callable[[T], object]) -> T:
        files = {name: getattr(section, name) for name in _TLS_FILES}
        section = section.model_copy(
            update={name: folder / file for name, file in files.items() if file is not None}
        )
        problems.extend(_try(section, path, make_context))
        return section

    def reached(database: D, path: Path) -> D:
        return database.model_copy(update={"tls": placed(database.tls, (*path, "tls"), tls.connecting)})

    tls.forget()  # what was read from the files before may not be in them any more
    users = tuple(secured(user, ("auth", "users", i)) for i, user in enumerate(config.auth.users))
    lookup = config.auth.lookup
    if config.auth.users_file is not None:
        listed = {user.name for user in users}
        found = read_users(folder / config.auth.users_file, problems.append)
        users += tuple(user for user in found if user.name not in listed)
    resolved = config.model_copy(
        update={
            "shared": reached(config.shared, ("shared",)),
            "databases": {
                name: reached(database, ("databases", name)) for name, database in config.databases.items()
            },
            "listen": config.listen.model_copy(
                update={"tls": placed(config.listen.tls, ("listen", "tls"), tls.accepting)}
            ),
            "auth": config.auth.model_copy(
                update={"users": users, "lookup": lookup and secured(lookup, ("auth", "lookup"))}
            ),
            "control": secured(config.control, ("control",)),
            "admin": secured(config.admin, ("admin",)),
            "state": config.state.model_copy(update={"path": folder / config.state.path}),
        }
    )
    return resolved, problems


def resolve_admin(admin: Admin, folder: FilePath, environ: Mapping[str, str]) -> tuple[Admin, list[Problem]]:
    """The same for the section of the admin API alone."""
    problems: list[Problem] = []
    return _secured(admin, ("admin",), folder, environ, problems.append), problems


def _secured(
    section: S, path: Path, folder: FilePath, environ: Mapping[str, str], report: Callable[[Problem], None]
) -> S:
    _, file, variable = section.secret_fields()
    given = section.given_secrets()
    secret = None
    if given == (file,):
        secret = _from_file(folder / getattr(section, file), (*path, file), report)
    elif given == (variable,):
        secret = _from_environment(getattr(section, variable), (*path, variable), environ, report)
    return section.with_secret(secret) if secret else section


_TLS_FILES = ("certificate_file", "key_file", "ca_file", "crl_file")


def _try(section: T, path: Path, make_context: Callable[[T], object]) -> list[Problem]:
    """What is wrong with a section's certificates: each file by itself, then what only shows in use."""
    problems = []
    for name in _TLS_FILES:
        file: FilePath | None = getattr(section, name)
        try:
            if file is not None:
                file.read_bytes()
        except OSError as error:
            problem = f"{file}: {error.strerror or error}"
            problems.append(Problem((*path, name), problem, "name a file that pgshunt's user can read"))
    if problems or section.mode == "disable":
        return problems
    try:
        make_context(section)
    except OSError as error:
        reason = error.reason.lower().replace("_", " ") if isinstance(error, ssl.SSLError) else str(error)
        remedy = "give PEM files, and the key that belongs to the certificate, without a passphrase"
        return [Problem(path, f"the certificates cannot be used: {reason}", remedy)]
    return []


def _from_file(file: FilePath, path: Path, report: Callable[[Problem], None]) -> Secret | None:
    try:
        text = file.read_text(encoding="utf-8")
        mode = file.stat().st_mode
    except OSError as error:
        report(
            Problem(path, f"{file}: {error.strerror or error}", "name a file that pgshunt's user can read")
        )
        return None
    except UnicodeDecodeError:
        report(Problem(path, f"{file} is not a text", "write the secret in its first line, as UTF-8"))
        return None
    if mode & stat.S_IROTH:
        report(Problem(path, f"{file} can be read by everyone", f"chmod o-r {file}", Severity.WARNING))
    secret = _first_line(text)
    if not secret:
        report(Problem(path, f"{file} is empty", "write the secret in its first line"))
        return None
    return Secret(secret)


def _first_line(text: str) -> str:
    """What puts secrets into files and variables likes to end them with a line feed."""
    return text.partition("\n")[0].removesuffix("\r")


def _from_environment(
    variable: str, path: Path, environ: Mapping[str, str], report: Callable[[Problem], None]
) -> Secret | None:
    value = _first_line(environ.get(variable, ""))
    if not value:
        report(Problem(path, f"the environment variable {variable} is empty or not set", "set it"))
        return None
    return Secret(value)
