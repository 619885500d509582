"""An experiment file with flags laid over it: the document every command starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from simulator.commands.flags import TRIED, Flag
from simulator.config.document import Document, parse_yaml, read_document
from simulator.errors import ConfigError

SYNTHETIC_KEYS = ("num_prompts", "request_rate", "input_len", "output_len")
POLICY_KEYS = ("scheduler", "allocator", "router")  # --set may add keys of the kind
SLO_NAMES = ("ttft", "tpot", "e2e", "attainment")
MOST_DRAWS = 10_000
Values = Mapping[str, Any]  # what the user typed, by parameter; None or () = not given


def document_of(experiment: str | None, flags: Sequence[Flag], values: Values) -> Document:
    """The experiment file (nothing where there is none) with every given flag laid over it.

    Raises:
        ConfigError: the file or a flag cannot be used, or two flags contradict each other.
    """
    document = _spelled_out(read_document(experiment)) if experiment else Document()
    for flag in flags:
        value = values.get(flag.parameter)
        is_given = value if flag.kind is bool else value is not None
        if is_given and flag.key and not _is_synthetic(flag):
            document = document.override(flag.key, _value_of(flag, value), flag.name)
    document = _with_synthetic(document, flags, values)
    for text in values.get("slo") or ():
        document = _with_slo(document, text)
    for text in values.get("set") or ():
        document = _with_key(document, text, "--set")
    return document


def varied(document: Document, text: str) -> tuple[str, Document]:
    """Name, and document with the keys of one --vary, '[NAME:] KEY=VALUE; ...', laid over it.

    Raises:
        ConfigError: no keys, or the seed, which all arms of a comparison share.
    """
    name, colon, keys = text.partition(":")
    if not colon or "=" in name:  # a colon inside a value
        name, keys = " ".join(text.split()), text
    for part in keys.split(";"):
        if part.partition("=")[0].strip() == "seed":
            raise ConfigError(
                "--vary seed: expected another key, as every experiment runs under the same seeds "
                "(--seed chooses the first)"
            )
        document = _spelled_out(_with_key(document, part, "--vary"))
    return name.strip(), document


def num_draws(values: Values) -> int:
    """What --uncertainty asks for; 0 = nothing.

    Raises:
        ConfigError: a number of draws that no interval comes from.
    """
    text = values["uncertainty"]
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and 2 <= int(text) <= MOST_DRAWS):
        raise ConfigError(f"--uncertainty: expected an int from 2 to {MOST_DRAWS:,} (got {text})")
    return int(text)


def _spelled_out(document: Document) -> Document:
    """Sections written as plain text in their long form, so that flags can set keys in them."""
    data = dict(document.data)
    for name, key in (("workload", "file"), *((policy, "kind") for policy in POLICY_KEYS)):
        if isinstance(data.get(name), str):
            data[name] = {key: data[name]}
    drafting = data.get("speculation")
    if isinstance(drafting, dict):
        data["speculation"] = {
            name: {"kind": value} if name != "acceptance" and isinstance(value, str) else value
            for name, value in drafting.items()
        }
    return replace(document, data=data)


def _value_of(flag: Flag, value: object) -> object:
    if flag.key == "workload":
        return {"file": value}
    if flag.key in POLICY_KEYS:
        return {"kind": value}
    if flag.kind is bool:
        return flag.sets
    return listed(flag, str(value)) if flag in TRIED else typed(flag.kind, str(value))


def typed(kind: type, text: str) -> object:
    """Text as a number where it is one; else as it is, for the file's own checks to refuse."""
    try:
        return kind(text) if "_" not in text or kind is str else text
    except ValueError:
        return text


def listed(flag: Flag, text: str) -> list[Any]:
    """Values of a comma-separated flag of a search; ints unless they are formats."""
    parts = [part.strip() for part in text.split(",")]
    if flag.key.endswith("_formats"):
        return parts
    if not all(part.isascii() and part.isdigit() and len(part) < 16 for part in parts):
        raise ConfigError(f"{flag.name}: expected ints >= 1 such as 1,2,4 (got {text!r})")
    return [int(part) for part in parts]


def _is_synthetic(flag: Flag) -> bool:
    return flag.key.removeprefix("workload.") in SYNTHETIC_KEYS


def _with_synthetic(document: Document, flags: Sequence[Flag], values: Values) -> Document:
    """Flags of synthetic load over a synthetic workload, which they make where there is none."""
    given = [f for f in flags if _is_synthetic(f) and values.get(f.parameter) is not None]
    workload = document.data.get("workload")
    is_source = isinstance(workload, Mapping) and ("kind" in workload or "file" in workload)
    if given and not is_source:
        document = document.override("workload.kind", "synthetic", given[0].name)
    for flag in given:
        kind = document.data["workload"].get("kind", "a trace")
        if kind not in ("synthetic", "prefix_repetition"):
            raise ConfigError(
                f"{flag.name}: expected a synthetic workload to set it in (got {kind} "
                f"from {document.where('workload')}); a trace takes --max-requests and --rate-scale"
            )
        document = document.override(flag.key, typed(flag.kind, values[flag.parameter]), flag.name)
    return document


def _with_slo(document: Document, text: str) -> Document:
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or name not in SLO_NAMES or not value:
        raise ConfigError(
            f"--slo: expected NAME=TIME with NAME one of {', '.join(SLO_NAMES)}, such as "
            f"ttft=1s (got {text!r})"
        )
    number = typed(float, value) if name == "attainment" else value
    return document.override(f"slo.{name}", number, f"--slo {name}")


def _with_key(document: Document, text: str, flag: str) -> Document:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise ConfigError(
            f"{flag}: expected KEY=VALUE with a dotted YAML key, such as plan.tp=2 (got {text!r})"
        )
    return document.override(key, parse_yaml(value, f"{flag} {key}"), f"{flag} {key}")
