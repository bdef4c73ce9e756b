"""Validates Kubernetes objects: every field known, every type right.

Built-in kinds are validated against the published schemas of Kubernetes, custom resources against the fields
that `custom_resources.yaml` lists. A kind that is in neither is an error.
"""

from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

VERSIONS = ("1.30", "1.37")
"""The oldest that the chart wants, and the newest known."""
_CUSTOM = yaml.safe_load(Path(__file__).with_name("custom_resources.yaml").read_text())

Object = dict[str, Any]


def check(found: Object) -> None:
    """Raises when a field is unknown, missing or of another type."""
    custom = _CUSTOM.get(f"{found['apiVersion']}/{found['kind']}")
    if custom is not None:
        assert set(found) == {"apiVersion", "kind", "metadata", "spec"}
        jsonschema.validate(found["spec"], _schema(custom))
        return
    for version in VERSIONS:
        kubernetes_validate.validate(found, version, strict=True)


def _schema(fields: Any) -> Object:
    match fields:
        case "strings":
            return {"type": "object", "additionalProperties": {"type": "string"}}
        case "any":
            return {}
        case str():
            return {"type": fields}
        case [item]:
            return {"type": "array", "items": _schema(item), "minItems": 1}
        case _:
            known = {name: _schema(below) for name, below in fields.items()}
            return {"type": "object", "properties": known, "additionalProperties": False}
