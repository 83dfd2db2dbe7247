"""Keeps passwords and tokens out of logs, messages and comparisons that leak time."""

import hmac
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SerializationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

MASK: Final = "***"
REVEAL: Final = {"reveal": True}
"""Serialisation context under which a Secret is written out in clear: for a worker's private channel only."""


class Secret:
    """A text that shows itself only when asked by `reveal`, and is compared in constant time."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def matches(self, candidate: str) -> bool:
        """Whether `candidate` is this secret; takes the same time wherever the two differ."""
        # What came over a network may be no text at all.
        return hmac.compare_digest(self._text.encode(), candidate.encode(errors="surrogateescape"))

    def __eq__(self, other: object) -> bool:
        return self.matches(other._text) if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __repr__(self) -> str:
        return MASK

    __str__ = __repr__

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(cls._serialize, info_arg=True),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "minLength": 1, "writeOnly": True}

    @classmethod
    def _validate(cls, value: object) -> "Secret":
        if isinstance(value, Secret):
            return value
        if not isinstance(value, str):
            raise PydanticKnownError("string_type")
        if not value:
            raise PydanticKnownError("string_too_short", {"min_length": 1})
        return cls(value)

    def _serialize(self, info: SerializationInfo) -> str:
        return self._text if (info.context or {}).get("reveal") else MASK
