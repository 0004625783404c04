"""JSON that json.dumps would not write: numbers too large, brackets too deep."""

from __future__ import annotations

import json


class Raw(str):
    """A value as its JSON text."""


def to_json(value: object) -> str:
    """Dictionaries, lists, plain values and `Raw` -> JSON."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {to_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_json, value)) + "]"
    return json.dumps(value)
