"""From `{kind: ..., key: value}` to the frozen dataclass a registry holds under that kind.

The keys of a policy are its dataclass fields, so there is no second list to keep in step; a kind
"package.module:Class" names a dataclass outside the tree.
"""

from __future__ import annotations

import importlib
import math
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    create_model,
)

from simulator.config.document import Document, shown
from simulator.config.fields import MAX_INT, UNIT_SUFFIXES, clear_error, unknown_key
from simulator.config.sections import Section
from simulator.errors import ConfigError, unknown_name


class PolicySection(Section):
    """Keys of a policy; infinity is a value some take ("burstiness: .inf")."""

    model_config = ConfigDict(allow_inf_nan=True)


def build_policy(
    section: str,
    registry: Mapping[str, type],
    value: object,
    document: Document,
    default: str | None = None,
) -> Any:
    """The policy described at `section` of the document; plain text is a kind without keys."""
    data = {"kind": value} if isinstance(value, str) else dict(value)  # type: ignore[call-overload]
    kind = data.pop("kind", default)
    if not isinstance(kind, str):
        names = ", ".join(sorted(registry))
        where = document.where(f"{section}.kind")
        raise ConfigError(f"{where}: expected one of {names} (got {shown(kind)})")
    with document.at(f"{section}.kind"):
        policy = find_class(section, registry, kind)
    values = checked_values(policy, data, section, document)
    with document.at(section):
        try:
            return policy(**values)
        except (TypeError, ValueError) as error:  # an outside class may know only these
            raise ConfigError(str(error)) from None


def find_class(what: str, registry: Mapping[str, type], kind: str) -> type:
    """The class registered under `kind`, or imported where it is "package.module:Class"."""
    if kind in registry:
        return registry[kind]
    module_name, colon, class_name = kind.partition(":")
    if not colon:
        raise unknown_name(f"{what} kind", kind, registry)
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot import '{kind}' ({error}); is it on PYTHONPATH?") from None
    if not (isinstance(found, type) and is_dataclass(found)):
        raise ConfigError(f"expected '{kind}' to be a frozen dataclass")
    return found


def checked_values(
    cls: type,
    data: Mapping[str, Any],
    section: str,
    document: Document,
    leave_out: Collection[str] = (),
) -> dict[str, Any]:
    """Arguments for a dataclass from the keys at `section`: the stated ones, types checked."""
    keys = keys_section(cls, tuple(leave_out))
    for key in data:
        if key not in keys.model_fields:
            raise unknown_key(document, section, str(key), keys.model_fields)
    try:
        checked = keys.model_validate(dict(data))
    except ValidationError as error:
        raise clear_error(error, document, section) from None
    values = {name: getattr(checked, name) for name in data}
    hints = get_type_hints(cls)
    for name in values:
        if _is_path(hints[name]):
            values[name] = _file_of(document, f"{section}.{name}", values[name])
    return values


def _file_of(document: Document, key: str, text: str) -> str:
    """A path beside the YAML file; a bare name that is not there may be a bundled one."""
    path = document.path(key, text)
    return path if Path(path).exists() or "/" in text else text


@cache
def keys_section(cls: type, leave_out: tuple[str, ...] = ()) -> type[PolicySection]:
    """The keys of a dataclass, as a strict section built from its fields."""
    try:
        hints = get_type_hints(cls)
        keys: dict[str, Any] = {
            item.name: (yaml_type(item.name, hints[item.name]), _default(item))
            for item in fields(cls)
            if item.init and item.name not in leave_out
        }
        made: type[PolicySection] = create_model(
            cls.__name__, __base__=PolicySection, __doc__=first_line(cls), **keys
        )
    except (NameError, PydanticUserError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"cannot read the fields of {cls.__name__} ({reason})") from None
    return made


def first_line(cls: type) -> str:
    """First line of a docstring, for descriptions."""
    return (cls.__doc__ or "").strip().split("\n")[0]


def _default(item: Any) -> Any:
    if item.default is not MISSING:
        return item.default
    if item.default_factory is not MISSING:
        return Field(default_factory=item.default_factory)
    return ...


def yaml_type(name: str, hint: Any) -> Any:
    """What a file holds for a field: text for paths and units, lists for tuples."""
    if _is_path(hint):
        return str
    if hint is int:
        return Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)]
    if hint is float:
        with_units = (kind for suffix, kind in UNIT_SUFFIXES if name.endswith(suffix))
        return next(with_units, Annotated[float, AfterValidator(_refuse_nan)])
    if get_origin(hint) is tuple:
        arguments = (a if a is Ellipsis else yaml_type(name, a) for a in get_args(hint))
        return Annotated[tuple[tuple(arguments)], Field(strict=False)]  # type: ignore[misc]
    if get_origin(hint) in (Union, types.UnionType) and len(_members(hint)) > 1:
        # A choice of types is checked by the policy itself, which knows what each means.
        return Annotated[Any, WithJsonSchema(TypeAdapter(hint).json_schema())]
    return hint


def _members(hint: Any) -> list[Any]:
    return [member for member in get_args(hint) if member is not type(None)]


def _is_path(hint: Any) -> bool:
    return hint is Path or Path in get_args(hint)


def _refuse_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("expected a number (got nan)")
    return value
