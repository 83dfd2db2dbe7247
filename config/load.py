"""Turns a configuration file into a `Config`, or into every problem it has."""

import os
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path as FilePath
from typing import Any, Final

from pydantic import ValidationError

from pgshunt.config.check import check
from pgshunt.config.explain import explain, stand_in
from pgshunt.config.model import Config
from pgshunt.config.problem import ConfigError, Path, Problem, Severity
from pgshunt.config.resolve import resolve
from pgshunt.config.source import Source

DEPTH_MAX: Final = 6
"""Sections within sections, of which each may have something missing."""


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


def examine(path: FilePath | str, environ: Mapping[str, str] | None = None) -> Report:
    """All there is to say about the file at `path`, warnings and notes too; a bad file raises nothing."""
    environ = os.environ if environ is None else environ
    path = FilePath(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        problem = Problem((), f"{path}: {error.strerror or error}", "name a file that can be read")
        return Report((problem,), None)
    except UnicodeDecodeError as error:
        problem = Problem((), f"{path}: byte {error.start} is not UTF-8", "save the file as UTF-8")
        return Report((problem,), None)
    return _examine(Source(text, str(path), environ), path.absolute().parent, environ)


def _examine(source: Source, folder: FilePath, environ: Mapping[str, str]) -> Report:
    problems = list(source.problems)
    if not source.values and problems:
        return Report(tuple(problems), None)
    config, shape_problems = _validate(source)
    known = {problem.path for problem in problems}
    problems += (problem for problem in shape_problems if problem.path not in known)
    if config is not None:
        config, secret_problems = resolve(config, folder, environ)
        # What is already complained about is no longer in `config`: rules would misread its absence.
        wrong = [_outside_lists(problem.path) for problem in problems if not problem.at_key]
        problems += (p for p in (*secret_problems, *check(config)) if not _touches(p.path, wrong))
    placed = _in_order(_placed(problems, source))
    failed = any(problem.severity is Severity.ERROR for problem in placed)
    return Report(placed, None if failed else config)


def _validate(source: Source) -> tuple[Config | None, list[Problem]]:
    """The configuration in `source`; if values are wrong or missing, one in which the rules can still look at
    all the others.
    """
    try:
        return Config.model_validate(source.values), []
    except ValidationError as error:
        problems, values = explain(error, source), _repaired(source.values, error)
    for _ in range(DEPTH_MAX):
        try:
            return Config.model_validate(values), problems
        except ValidationError as error:
            # Rules of one section, which are looked at only when all of its values are right.
            wrong = [_outside_lists(problem.path) for problem in problems if not problem.at_key]
            problems += (more for more in explain(error, source) if not _touches(more.path, wrong))
            values = _repaired(values, error)
    return None, problems


def _repaired(values: Mapping[str, Any], error: ValidationError) -> dict[str, Any]:
    """`values` without what is wrong, and with something in place of what is missing; what that is does not
    matter, since no rule's word about it is told.
    """
    filled, wrong = deepcopy(dict(values)), []
    for details in error.errors(include_url=False, include_input=False):
        path = details["loc"]
        if details["type"] != "missing":
            wrong.append(path[:-1] if path and path[-1] == "[key]" else path)
        elif isinstance(section := _at(filled, path[:-1]), dict):
            section[path[-1]] = stand_in(path)
    return _without(filled, wrong)


def _at(values: Any, path: Iterable[str | int]) -> Any:
    """What stands at `path`; None where something on the way was removed."""
    for step in path:
        if isinstance(values, dict):
            values = values.get(step)
        elif isinstance(values, list) and isinstance(step, int) and step < len(values):
            values = values[step]
        else:
            return None
    return values


def _without(values: Mapping[str, Any], paths: Iterable[Path]) -> dict[str, Any]:
    """`values` without what stands at `paths`, the last items of a list first, so that indexes stay true."""
    remaining = deepcopy(dict(values))
    for *parents, last in sorted(paths, key=_nested_last, reverse=True):
        section = _at(remaining, parents)
        if isinstance(last, int) or last in section:
            del section[last]
    return remaining


def _nested_last(path: Path) -> list[tuple[bool, int, str]]:
    return [(isinstance(step, str), step if isinstance(step, int) else 0, str(step)) for step in path]


def _outside_lists(path: Path) -> Path:
    """`path` up to its list, if it leads into one: indexes behind a removed item are no longer the file's."""
    return tuple(takewhile(lambda step: isinstance(step, str), path))


def _touches(path: Path, wrong: Iterable[Path]) -> bool:
    return any(path[: len(other)] == other or other[: len(path)] == path for other in wrong)


def _placed(problems: Iterable[Problem], source: Source) -> Iterator[Problem]:
    for problem in problems:
        place = problem.place or source.place(problem.path, key=problem.at_key)
        yield replace(problem, place=place)


def _in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    def position(problem: Problem) -> tuple[int, int]:
        assert problem.place is not None
        return problem.place.line, problem.place.column

    return tuple(sorted(problems, key=position))
