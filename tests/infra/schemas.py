"""KubeRay's OpenAPI schemas as a strict JSON Schema, in which unknown fields are errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

FOLDER = Path(__file__).parents[3] / "shared" / "schemas"


def strict(schema: Any) -> Any:
    """Return the same schema, in which an object that names its fields accepts no others.

    A custom resource definition does not set additionalProperties for this, because the API server drops unknown fields
    silently.
    """
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: strict(part) for name, part in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and not open_ended and _is_schema(schema):
        result["additionalProperties"] = False
    return result


def _is_schema(schema: dict[str, Any]) -> bool:
    """Return whether this is a schema, and not the mapping of a field with the name "properties"."""
    return schema.get("type", "object") == "object"


def problems(document: dict[str, Any]) -> list[str]:
    """Return the errors of a document under KubeRay's schema for its kind, as `path: message`."""
    schema = strict(json.loads((FOLDER / f"{document['kind'].lower()}-v1.json").read_text()))
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]
