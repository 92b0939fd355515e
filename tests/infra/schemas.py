"""The schemas of Kubernetes and of the custom resources that infra/ uses, strict: an unknown field is an error."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

EXCERPT = Path(__file__).with_name("custom_resources.yaml")
KUBERNETES = "1.35"
"""The first version in which pods may have volumes from images by default."""

SIMPLE: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "map": {"type": "object", "additionalProperties": {"type": "string"}},
    "quantity": {"type": ["string", "number"]},
    "kubernetes": {},
}
OBJECT_FIELDS = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}


@functools.cache
def excerpt() -> dict[str, Any]:
    """Return the entries of custom_resources.yaml."""
    return yaml.safe_load(EXCERPT.read_text())


def json_schema(shape: Any) -> dict[str, Any]:
    """Return a JSON Schema for a type in the notation of custom_resources.yaml."""
    if isinstance(shape, list):
        return {"type": "array", "items": json_schema(shape[0])}
    if isinstance(shape, dict):
        return {
            "type": "object",
            "properties": {name.rstrip("*"): json_schema(kind) for name, kind in shape.items()},
            "required": [name.rstrip("*") for name in shape if name.endswith("*")],
            "additionalProperties": False,
        }
    if "|" in shape:
        return {"enum": shape.split("|")}
    return SIMPLE[shape] if shape in SIMPLE else json_schema(excerpt()[shape])


def _document_schema(name: str) -> dict[str, Any]:
    """Return the schema of a whole document of a custom resource."""
    if f"{name}*" in excerpt():
        schema = json_schema(excerpt()[f"{name}*"])
        return {**schema, "properties": {**schema["properties"], **OBJECT_FIELDS}}
    spec = json_schema(excerpt()[name])
    return {"properties": {**OBJECT_FIELDS, "spec": spec}, "required": ["spec"], "additionalProperties": False}


def problems(document: dict[str, Any]) -> list[str]:
    """Return the errors of a document under the schema of its kind, as `path: message`."""
    name = f"{document['apiVersion']}/{document['kind']}"
    if {name, f"{name}*"} & excerpt().keys():
        errors = jsonschema.Draft202012Validator(_document_schema(name)).iter_errors(document)
        return [f"{error.json_path}: {error.message}" for error in errors]
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{document['kind']}: {error.message}"]
    return []
