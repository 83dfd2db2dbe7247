"""Says in this project's words what pydantic found wrong with a value."""

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pgshunt.config.model import Config
from pgshunt.config.problem import Path, Problem, choose
from pgshunt.config.source import Source
from pgshunt.config.values import NAME_BYTES_MAX

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
    "string_too_short": ("is empty", "write at least {min_length} character"),
    "string_too_long": ("is too long", "PostgreSQL's names have at most {max_length} bytes"),
    "refused": ("{message}", "{remedy}"),
}


def explain(error: ValidationError, source: Source) -> list[Problem]:
    """The problems in `error`, in words. Values appear as the file has them, before variables are put in."""
    return [_problem(details, source) for details in error.errors(include_url=False, include_input=False)]


def stand_in(path: Path) -> Any:
    """Something right in place of what is wrong or missing at `path`, where there must be something."""
    return _made(_type_at(path), "_".join(("stand_in", *map(str, path))))


def may_be_left_out(path: Path) -> bool:
    """Whether the value at `path` has a default."""
    section = _type_at(path[:-1])
    return (
        isinstance(section, type)
        and issubclass(section, BaseModel)
        and not section.model_fields[str(path[-1])].is_required()
    )


def _made(declared: Any, name: str) -> Any:
    """A value of a declared type; its texts are `name`, so that no two stand-ins look like the same thing."""
    declared = _bare(declared)
    if get_origin(declared) is Literal:
        return get_args(declared)[0]
    if get_origin(declared) is tuple:
        return [_made(get_args(declared)[0], name)]
    if get_origin(declared) is dict:
        return {}
    if fields := _fields_of(declared):
        return {key: _made(field.annotation, name) for key, field in fields.items() if field.is_required()}
    return 1 if issubclass(declared, int) else name[:NAME_BYTES_MAX]


def _problem(details: ErrorDetails, source: Source) -> Problem:
    path = details["loc"]
    if details["type"] == "extra_forbidden":
        word = str(path[-1])
        remedy = choose(word, _fields_of(_type_at(path[:-1])), "known keys")
        return Problem(path, "is not a key of this section", remedy, at_key=True)
    message, remedy = _MESSAGES.get(details["type"], (details["msg"], "see config/schema.json"))
    facts = {"written": _quoted(source.written(path)), **details.get("ctx", {})}
    return Problem(path, message.format_map(facts), remedy.format_map(facts))


def _quoted(written: str | None) -> str:
    return "this" if written is None else repr(written)


def _type_at(path: Path) -> Any:
    """The declared type of the value at `path`."""
    declared: Any = Config
    for step in path:
        if fields := _fields_of(declared):
            declared = fields[str(step)].annotation
        else:
            declared = get_args(declared)[1 if get_origin(declared) is dict else 0]
        declared = _bare(declared)
    return declared


def _bare(declared: Any) -> Any:
    """A type without its annotations, and without the None that leaving it out stands for."""
    while get_origin(declared) in (Annotated, UnionType):
        declared = get_args(declared)[0]
    return declared


def _fields_of(declared: Any) -> Mapping[str, FieldInfo]:
    """Of a section; empty for anything else."""
    is_section = isinstance(declared, type) and issubclass(declared, BaseModel)
    return declared.model_fields if is_section else {}
