"""Turns a configuration file into a `Config`, or into every problem it has."""

import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from pgshunt.config.check import check, check_sections
from pgshunt.config.explain import explain, may_be_left_out, stand_in
from pgshunt.config.model import Admin, Config
from pgshunt.config.problem import ConfigError, Path, Problem, Severity
from pgshunt.config.resolve import resolve, resolve_admin
from pgshunt.config.source import Source

Ask = Callable[[Config], Iterable[Problem]]
"""ask(config): what is wrong with a configuration that has no error by itself."""


def ask_nobody(config: Config) -> Iterable[Problem]:
    """The file alone is looked at."""
    return ()


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in a file."""

    problems: tuple[Problem, ...]
    """In the order of the file."""
    config: Config | None
    """None if an error is among the problems."""


def load(path: FilePath | str, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration in the file at `path`, with its secrets read and its paths absolute.

    `environ` is the process's environment unless given. Raises ConfigError with all problems at once.
    """
    report = examine(path, environ)
    if report.config is None:
        raise ConfigError(report.problems)
    return report.config


def load_admin(
    path: FilePath | str, environ: Mapping[str, str] | None = None, *, with_token: bool = True
) -> Admin:
    """What the file at `path` says of the admin API, with its token read unless `with_token` is false.

    For who only asks a running pgshunt: no other section's variables, secrets and files need to be there. The
    file's form is looked at whole; raises ConfigError with all that is wrong with it.
    """
    environ = os.environ if environ is None else environ
    source = _read(FilePath(path), environ)
    config, problems, wrong = _form(source)
    elsewhere = {place for place in source.unset if place[0] != "admin"}
    problems = [problem for problem in problems if problem.path not in elsewhere]
    admin = config.admin
    if with_token:
        admin, unread = resolve_admin(admin, FilePath(path).absolute().parent, environ)
        problems += _certain(unread, wrong)
    if _has_errors(problems):
        raise ConfigError(_in_order(_placed(problems, source)))
    return admin


def examine(path: FilePath | str, environ: Mapping[str, str] | None = None, ask: Ask = ask_nobody) -> Report:
    """All there is to say about the file at `path`, warnings and notes too; a bad file raises nothing.

    `ask` finds what only servers can tell; it is left out where the file has an error by itself.
    """
    environ = os.environ if environ is None else environ
    path = FilePath(path)
    try:
        source = _read(path, environ)
    except ConfigError as unreadable:
        return Report(unreadable.problems, None)
    return _examine(source, path.absolute().parent, environ, ask)


def _read(path: FilePath, environ: Mapping[str, str]) -> Source:
    """Raises ConfigError if there is no tree of values."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        problem = Problem((), f"{path}: {error.strerror or error}", "name a file that can be read")
        raise ConfigError((problem,)) from error
    except UnicodeDecodeError as error:
        problem = Problem((), f"{path}: byte {error.start} is not UTF-8", "save the file as UTF-8")
        raise ConfigError((problem,)) from error
    source = Source(text, str(path), environ)
    if not source.values and source.problems:
        raise ConfigError(source.problems)
    return source


def _examine(source: Source, folder: FilePath, environ: Mapping[str, str], ask: Ask) -> Report:
    config, problems, wrong = _form(source)
    config, unread = resolve(config, folder, environ)
    problems += _certain(unread, wrong)
    wrong |= {path for path in _wrong(unread) if source.written(path) is not None}
    problems += _certain(check(config), wrong)
    if not _has_errors(problems):
        problems += ask(config)
    return Report(_in_order(_placed(problems, source)), None if _has_errors(problems) else config)


def _form(source: Source) -> tuple[Config, list[Problem], set[Path]]:
    """The configuration with stand-ins in the places of what is wrong, which rules may look at; what is wrong
    with single values and sections; and these places.
    """
    problems = list(source.problems)
    config, shape_problems = _validate(source)
    known = set(_wrong(problems))
    problems += (problem for problem in shape_problems if problem.path not in known)
    wrong = set(_wrong(problems))
    problems += _certain(check_sections(config), wrong)
    return config, problems, wrong


def _has_errors(problems: Iterable[Problem]) -> bool:
    return any(problem.severity is Severity.ERROR for problem in problems)


def _validate(source: Source) -> tuple[Config, list[Problem]]:
    """The configuration in `source`, with something right in place of each value that is wrong or missing, so
    that rules see everything else as it is.
    """
    try:
        return Config.model_validate(source.values), []
    except ValidationError as error:
        return Config.model_validate(_repaired(source.values, error)), explain(error, source)


def _repaired(values: Mapping[str, Any], error: ValidationError) -> dict[str, Any]:
    repaired = deepcopy(dict(values))
    for details in error.errors(include_url=False, include_input=False):
        *parents, last = details["loc"]
        section: Any = repaired
        for step in parents:
            section = section[step]
        if details["type"] == "extra_forbidden" or may_be_left_out(details["loc"]):
            del section[last]
        else:
            section[last] = stand_in(details["loc"])
    return repaired


def _certain(found: Iterable[Problem], wrong: Container[Path]) -> Iterator[Problem]:
    """What was found, but for problems that may be due to what stands in for a wrong value."""
    for problem in found:
        if not any(_is_in(path, wrong) for path in (problem.path, *problem.follows_from)):
            yield problem


def _wrong(problems: Iterable[Problem]) -> Iterator[Path]:
    """The values that are errors by themselves."""
    for problem in problems:
        if problem.severity is Severity.ERROR and not problem.at_key:
            yield problem.path


def _is_in(path: Path, wrong: Container[Path]) -> bool:
    """Whether the value at `path` is one of the `wrong` ones, or part of one."""
    return any(path[:length] in wrong for length in range(1, len(path) + 1))


def _placed(problems: Iterable[Problem], source: Source) -> Iterator[Problem]:
    for problem in problems:
        place = problem.place or source.place(problem.path, key=problem.at_key)
        yield replace(problem, place=place)


def _in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    def position(problem: Problem) -> tuple[int, int]:
        assert problem.place is not None
        return problem.place.line, problem.place.column

    return tuple(sorted(problems, key=position))
