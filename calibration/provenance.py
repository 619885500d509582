"""Which Headway wrote a table, and its meta.yaml, without a library for either."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any


def headway_version() -> str:
    """Of this tree, installed or not."""
    try:
        text = Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        try:
            return metadata.version("headway")
        except metadata.PackageNotFoundError:
            return "unknown"
    return str(tomllib.loads(text)["project"]["version"])


def as_yaml(values: Mapping[str, Any], indent: str = "") -> str:
    """Mappings of text and numbers as YAML; text is quoted as JSON, which YAML reads."""
    lines = []
    for key, value in values.items():
        name = f"{indent}{key if key.isidentifier() else json.dumps(key)}:"
        if isinstance(value, Mapping) and value:
            lines.append(f"{name}\n{as_yaml(value, indent + '  ')}")
        else:
            lines.append(f"{name} {json.dumps(value)}\n")
    return "".join(lines)
