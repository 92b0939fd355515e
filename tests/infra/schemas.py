"""KubeRay's OpenAPI schemas as a strict JSON Schema: what they do not name is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

FOLDER = Path(__file__).parents[3] / "shared" / "schemas"


def strict(schema: Any) -> Any:
    """The same schema, where an object that names its fields has no others.

    A custom resource definition has no additionalProperties for that: the API server drops unknown fields in silence.
    """
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(part) for name, part in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and not open_ended and _is_schema(schema):
        made["additionalProperties"] = False
    return made


def _is_schema(schema: dict[str, Any]) -> bool:
    """Not the mapping of a field that is called "properties"."""
    return schema.get("type", "object") == "object"


def problems(document: dict[str, Any]) -> list[str]:
    """What KubeRay's schema of this kind finds wrong, as `place: message`."""
    schema = strict(json.loads((FOLDER / f"{document['kind'].lower()}-v1.json").read_text()))
    found = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]
