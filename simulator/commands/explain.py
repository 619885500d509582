"""`headway explain`: where the time of one iteration goes, op by op."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from simulator.commands.flags import EXPLAIN
from simulator.commands.output import console, print_json
from simulator.commands.overrides import Values, document_of
from simulator.config import resolve_machine
from simulator.costs.explain import Explanation, explain
from simulator.errors import ConfigError
from simulator.units import show_bytes, show_count, show_time

if TYPE_CHECKING:
    from rich.table import Table


def run(experiment: str | None, values: Values) -> None:
    """Price one iteration and print its ops."""
    prefill = [chunk(text) for text in values["prefill"] or ()]
    decode = [decoding(text) for text in values["decode"] or ()]
    if not prefill and not decode:
        raise ConfigError("expected an iteration: --prefill 2048, --decode 64@1024, or both")
    machine = resolve_machine(document_of(experiment, EXPLAIN, values))
    group = machine.cluster.groups[0]
    explanation = explain(machine.model, machine.plan, group, machine.settings, prefill, decode)
    head = {
        "model": machine.model.name,
        "weight_format": machine.model.weight_format,
        "kv_format": machine.model.kv_format,
        "gpu": group.gpu.name,
        "plan": str(machine.plan),
        "prefill": [{"tokens": new, "context_tokens": context} for new, context in prefill],
        "decode": [{"num_seqs": num, "context_tokens": context} for num, context in decode],
    }
    if values["json"]:
        print_json(head | asdict(explanation))
        return
    batch = [f"prefill {new} @ {context}" for new, context in prefill]
    batch += [f"decode {num} @ {context}" for num, context in decode]
    _print(explanation, f"{head['model']} on {head['gpu']}, {head['plan']}: {', '.join(batch)}")


def chunk(text: str) -> tuple[int, int]:
    """(new tokens, tokens in KV) of "2048" or "2048@8192"."""
    return _counts("--prefill", text, r"(\d{1,9})(?:@(\d{1,9}))?", "N or N@CTX, such as 2048")


def decoding(text: str) -> tuple[int, int]:
    """(sequences, tokens in KV of each) of "64@1024"."""
    return _counts("--decode", text, r"(\d{1,9})@(\d{1,9})", "B@CTX, such as 64@1024")


def _counts(flag: str, text: str, pattern: str, expected: str) -> tuple[int, int]:
    match = re.fullmatch(pattern, text.strip(), re.ASCII)
    first, context = (int(match[1]), int(match[2] or 0)) if match else (0, 0)
    if first < 1 or (flag == "--decode" and context < 1):
        raise ConfigError(f"{flag}: expected {expected}, counts >= 1 (got {text!r})")
    return first, context


def _print(explanation: Explanation, title: str) -> None:
    terminal = console()
    terminal.print(title, style="bold", markup=False)
    terminal.print(
        f"{show_time(explanation.total_s)} for {explanation.num_tokens} tokens "
        f"(run as {explanation.padded_tokens})"
    )
    terminal.print(_table(explanation))
    for note in explanation.notes:
        terminal.print(f"note: {note}", style="dim", markup=False)


def _table(explanation: Explanation) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    several = any(op.stage for op in explanation.ops)
    headings: Sequence[str] = (
        "×",
        "time",
        "share",
        "FLOP",
        "memory",
        "network",
        "bound",
        "of peak",
    )
    table.add_column("stage op" if several else "op", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "bound" else "right", no_wrap=True)
    for op in explanation.ops:
        table.add_row(
            f"{op.stage} {op.name}" if several else op.name,
            str(op.count),
            show_time(op.time_s),
            f"{100 * op.share:.1f} %",
            show_count(op.flops) if op.flops else "",
            show_bytes(op.memory_bytes) if op.memory_bytes else "",
            show_bytes(op.network_bytes) if op.network_bytes else "",
            op.bound,
            f"{100 * op.efficiency:.0f} %" if op.efficiency else "",
        )
    return table
