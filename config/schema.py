"""Prints the JSON Schema of the configuration, for editors.

`python -m pgshunt.config.schema > config/schema.json` after a change of the model.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from pgshunt.config.model import Config

_VARIABLE: Final = {"type": "string", "pattern": r"\$\{"}
"""Where a number stands, a variable may stand: it becomes the number when the file is read."""


class _WithVariables(GenerateJsonSchema):
    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return {"anyOf": [super().int_schema(schema), _VARIABLE]}

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), _VARIABLE]}

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return {"anyOf": [super().bool_schema(schema), _VARIABLE]}


def schema() -> Mapping[str, Any]:
    """The JSON Schema (2020-12) of one configuration file."""
    described = Config.model_json_schema(schema_generator=_WithVariables)
    return {"$schema": GenerateJsonSchema.schema_dialect, **described, "title": "pgshunt configuration"}


def rendered() -> str:
    """The text of `config/schema.json`."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(rendered(), end="")
