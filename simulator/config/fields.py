"""Types of YAML values (numbers with units), and one clear line out of a failed validation."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema

from simulator import units
from simulator.config.document import Document, shown
from simulator.errors import ConfigError

MAX_INT = 2**53  # every int below survives a trip through a float, and numpy's int64

_EXAMPLES = {
    "time": ["200 ms", "1 s", "10 min"],
    "bytes": ["80 GB", "16 GiB"],
    "bytes/s": ["3.35 TB/s"],
    "flop/s": ["989 TFLOP/s"],
    "rate": ["12 /s"],
}


def with_unit(dimension: str) -> Any:
    """Type of a value written as text with a unit and held in its SI base unit."""

    def convert(value: object) -> float:
        try:
            return units.parse(value, dimension, key="")
        except ConfigError as error:
            raise ValueError(str(error).removeprefix(": ")) from None

    schema = {
        "type": "string",
        "pattern": r"^\s*\+?[0-9.eE+-]+\s*[^\s0-9]\S*\s*$",
        "description": f"{dimension} with a unit",
        "examples": _EXAMPLES[dimension],
    }
    return Annotated[float, BeforeValidator(convert), WithJsonSchema(schema)]


# A policy's float field with such a name takes text with a unit; longest suffix first.
UNIT_SUFFIXES: tuple[tuple[str, Any], ...] = (
    ("_bytes_per_s", with_unit("bytes/s")),
    ("_flops_per_s", with_unit("flop/s")),
    ("_per_s", with_unit("rate")),
    ("_bytes", with_unit("bytes")),
    ("_s", with_unit("time")),
)

Seconds = with_unit("time")
Bytes = with_unit("bytes")
Degree = Annotated[int, Field(ge=1, le=2**20)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


def clear_error(error: ValidationError, document: Document, prefix: str = "") -> ConfigError:
    """The first thing wrong, as one line: unknown keys first, as they explain missing ones."""
    problems = error.errors(include_url=False, include_context=True)
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join([prefix, *map(str, first["loc"])] if prefix else map(str, first["loc"]))
    return ConfigError(f"{document.where(key)}: {_expectation(dict(first))}")


def unknown_key(document: Document, section: str, key: str, known: Iterable[str]) -> ConfigError:
    """ConfigError for a key that no one reads, with the nearest known one."""
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.55)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
    dotted = f"{section}.{key}" if section else key
    return ConfigError(f"{document.where(dotted)}: unknown key '{key}'; {hint}")


_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_EXPECTED = {
    "int_type": "an int",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "a mapping of keys to values",
    "mapping_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "tuple_type": "a list",
    "list_type": "a list",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "invalid_key": "text as a key",
}


def _expectation(problem: dict[str, Any]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "missing":
        return "this key is required"
    if kind == "extra_forbidden":
        return f"unknown key '{problem['loc'][-1]}'"
    if kind == "value_error":
        return str(context["error"])
    template = _EXPECTED.get(kind)
    expected = template.format(**context) if template else _lower_first(problem["msg"])
    for name, sign in _BOUNDS.items():
        if name in context:
            article = "an int" if isinstance(context[name], int) else "a number"
            expected = f"{article} {sign} {context[name]}"
    return f"expected {expected} (got {shown(problem['input'])})"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
