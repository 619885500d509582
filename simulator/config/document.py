"""Raw keys of one experiment: read strictly from YAML, overridden by flags, each with its origin.

Owns YAML syntax and where a value came from; refuses to know what any key means.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from simulator.errors import ConfigError, InfeasiblePlan

MAX_FILE_BYTES = 4_000_000  # an experiment is a page; anything larger is a wrong file


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Keys of an experiment, and for every message the file or the flag they came from."""

    data: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""  # file as the user named it; "" = flags only
    folder: Path = field(default_factory=Path)  # relative paths in the file start here
    flags: Mapping[str, str] = field(default_factory=dict)  # dotted key -> flag that set it

    def override(self, key: str, value: object, flag: str) -> Document:
        """The same document with the dotted `key` set by a command-line flag."""
        data = dict(self.data)
        section = data
        *parents, leaf = key.split(".")
        for name in parents:
            inner = section.get(name)
            if inner is not None and not isinstance(inner, Mapping):
                raise ConfigError(f"{self.where(name)}: expected a mapping (got {shown(inner)})")
            section[name] = dict(inner or {})
            section = section[name]
        section[leaf] = value
        flags = {known: name for known, name in self.flags.items() if not known.startswith(key)}
        return replace(self, data=data, flags=flags | {key: flag})

    def flag_of(self, key: str) -> str:
        """Flag that set this key or a parent of it; "" = the file did."""
        parts = key.split(".")
        prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((self.flags[prefix] for prefix in prefixes if prefix in self.flags), "")

    def where(self, key: str) -> str:
        """How messages name this key: '--tp', or 'burst.yaml: plan.tp'."""
        flag = self.flag_of(key)
        if flag:
            return flag
        return f"{self.source}: {key}" if self.source else key

    def path(self, key: str, text: str) -> str:
        """A path written at `key`: relative to the YAML file, or to the shell's folder in flags."""
        return text if self.flag_of(key) else str(self.folder / text)

    @contextmanager
    def at(self, key: str, *, named_only: bool = False) -> Iterator[None]:
        """Says where the value came from in any ConfigError or InfeasiblePlan raised inside.

        With `named_only`, only where the message names the key or one below it.
        """
        try:
            yield
        except (ConfigError, InfeasiblePlan) as error:
            raise type(error)(self._located(key, str(error), named_only)) from error

    def _located(self, key: str, text: str, named_only: bool) -> str:
        named = re.match(rf"{re.escape(key)}\b[\w.]*", text)
        if named is None:
            return text if named_only else f"{self.where(key)}: {text}"
        return self.where(named[0]) + text[named.end() :]


def read_document(path: str | Path) -> Document:
    """The keys of a YAML file.

    Raises:
        ConfigError: unreadable file, broken syntax, a duplicate key, or no mapping inside.
    """
    name = str(path)
    data = parse_yaml(_read_text(name), name)
    if data is None:
        raise ConfigError(f"{name}: expected an experiment (got an empty file)")
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: expected a mapping of keys to values (got {shown(data)})")
    return Document(data=data, source=name, folder=Path(path).parent)


def _read_text(name: str) -> str:
    path = Path(name)
    try:
        if path.is_dir():
            raise ConfigError(f"{name}: expected a YAML file (got a folder)")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{name}: expected a YAML file under 4 MB (got a larger file)")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: expected UTF-8 text (got binary data)") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{name}: cannot read the file ({reason})") from None


def parse_yaml(text: str, name: str) -> Any:
    """Value of one YAML document; `name` says which in errors."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{mark.line + 1}:" if mark else ""
        problem = " ".join(str(error.problem or error.context or "broken YAML").split())
        raise ConfigError(f"{name}:{line} {problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: broken YAML ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise ConfigError(f"{name}: broken YAML (nested too deep)") from None
    except ValueError as error:  # such as an int of 10,000 digits
        raise ConfigError(f"{name}: broken YAML ({str(error).split(';')[0]})") from None


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML where a key may not come twice, 1e3 is a number and a date stays text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' comes twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def shown(value: object) -> str:
    """A value as messages show it: short, and in YAML's words for nothing and truth."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return reprlib.repr(value)
