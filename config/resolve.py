"""Reads the secrets a configuration points to, and makes its paths absolute."""

import stat
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import TypeVar

from pgshunt.config.model import Config, SecretSection
from pgshunt.config.problem import Path, Problem, Severity
from pgshunt.config.secret import Secret

S = TypeVar("S", bound=SecretSection)


def resolve(config: Config, folder: FilePath, environ: Mapping[str, str]) -> tuple[Config, list[Problem]]:
    """`config` with every secret inline and every path absolute, and what could not be read.

    Paths are relative to `folder`, the one the configuration file stands in, wherever pgshunt is started.
    """
    problems: list[Problem] = []

    def secured(section: S, path: Path) -> S:
        _, file, variable = section.secret_fields()
        source: FilePath | str | None
        if (source := getattr(section, file)) is not None:
            secret = _from_file(folder / source, (*path, file), problems.append)
        elif (source := getattr(section, variable)) is not None:
            secret = _from_environment(str(source), (*path, variable), environ, problems.append)
        else:
            return section
        return section.with_secret(secret) if secret else section

    users = tuple(secured(user, ("auth", "users", i)) for i, user in enumerate(config.auth.users))
    resolved = config.model_copy(
        update={
            "auth": config.auth.model_copy(update={"users": users}),
            "control": secured(config.control, ("control",)),
            "admin": secured(config.admin, ("admin",)),
            "state": config.state.model_copy(update={"path": folder / config.state.path}),
        }
    )
    return resolved, problems


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
    secret = text.partition("\n")[0].removesuffix("\r")
    if not secret:
        report(Problem(path, f"{file} is empty", "write the secret in its first line"))
        return None
    return Secret(secret)


def _from_environment(
    variable: str, path: Path, environ: Mapping[str, str], report: Callable[[Problem], None]
) -> Secret | None:
    value = environ.get(variable)
    if not value:
        report(Problem(path, f"the environment variable {variable} is empty or not set", "set it"))
        return None
    return Secret(value)
