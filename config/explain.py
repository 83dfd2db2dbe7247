"""Says in this project's words what pydantic found wrong with a value."""

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pgshunt.config.model import Config
from pgshunt.config.problem import Path, Problem, choose
from pgshunt.config.source import Source

_MESSAGES: Final[Mapping[str, tuple[str, str]]] = {
    "missing": ("is missing", "add it"),
    "int_parsing": ("{written} is not a whole number", "write digits only"),
    "int_from_float": ("{written} is not a whole number", "write digits only"),
    "int_type": ("is not a whole number", "write digits only"),
    "float_parsing": ("{written} is not a number", "write a number such as 99.9"),
    "float_type": ("is not a number", "write a number such as 99.9"),
    "bool_parsing": ("{written} is neither true nor false", "write true or false"),
    "bool_type": ("is neither true nor false", "write true or false"),
    "string_type": ("is not a text", "write one value"),
    "path_type": ("is not a path", "write one path"),
    "model_type": ("is not a section", "write `key: value` lines below it"),
    "dict_type": ("is not a section", "write `key: value` lines below it"),
    "tuple_type": ("is not a list", "write `- item` lines below it, or [item, item]"),
    "greater_than_equal": ("{written} is too small", "the least is {ge}"),
    "less_than_equal": ("{written} is too large", "the most is {le}"),
    "literal_error": ("{written} is not known here", "write {expected}"),
    "string_pattern_mismatch": ("is not a usable name", "write one that matches {pattern}"),
    "string_too_short": ("is empty", "write at least {min_length} character"),
    "string_too_long": ("is too long", "PostgreSQL's names have at most {max_length} bytes"),
    "too_short": ("is empty", "write at least {min_length} item"),
    "refused": ("{message}", "{remedy}"),
}


def explain(error: ValidationError, source: Source) -> list[Problem]:
    """The problems in `error`, in words. Values appear as the file has them, before variables are put in."""
    return [_problem(details, source) for details in error.errors(include_url=False, include_input=False)]


def stand_in(path: Path) -> Any:
    """Something that may stand at `path`, where a required value is missing."""
    declared = _type_at(path)
    if get_origin(declared) is Literal:
        return get_args(declared)[0]
    if get_origin(declared) is tuple:
        return ["x"]
    if get_origin(declared) is dict or issubclass(declared, BaseModel):
        return {}
    return 1 if issubclass(declared, int) else "x"


def _problem(details: ErrorDetails, source: Source) -> Problem:
    path, at_key = details["loc"], False
    if path and path[-1] == "[key]":
        path, at_key = path[:-1], True
    if details["type"] == "extra_forbidden":
        word = str(path[-1])
        remedy = choose(word, _keys_of(_type_at(path[:-1])), "known keys")
        return Problem(path, "is not a key of this section", remedy, at_key=True)
    message, remedy = _MESSAGES.get(details["type"], (details["msg"], "see config/schema.json"))
    facts = {"written": _quoted(source.written(path)), **details.get("ctx", {})}
    return Problem(path, message.format_map(facts), remedy.format_map(facts), at_key=at_key)


def _quoted(written: str | None) -> str:
    return "this" if written is None else repr(written)


def _type_at(path: Path) -> Any:
    """The declared type of the value at `path`."""
    declared: Any = Config
    for step in path:
        if isinstance(declared, type) and issubclass(declared, BaseModel):
            declared = declared.model_fields[str(step)].annotation
        elif get_origin(declared) is dict:
            declared = get_args(declared)[1]
        else:
            declared = get_args(declared)[0]
    return declared


def _keys_of(declared: Any) -> tuple[str, ...]:
    return tuple(declared.model_fields) if issubclass(declared, BaseModel) else ()
