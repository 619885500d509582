"""The terminal summary of one run: what it cost, how fast it was, where the time went.

Takes the dict of `metrics.summarise` and computes nothing; a value that is not defined is a dash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from simulator.experiment import Experiment
from simulator.units import show_bytes, show_count, show_time

if TYPE_CHECKING:  # rich is for the terminal, not for search workers
    from rich.console import Console
    from rich.table import Table

WIDTH = 80
DASH = "–"
Summary = Mapping[str, object]
Row = tuple[str, str]

_LATENCIES = (("TTFT", "ttft"), ("TPOT", "tpot"), ("ITL", "itl"), ("E2E", "e2el"))
_COLUMNS = (("mean", "mean"), ("p50", "median"), ("p90", "p90"), ("p99", "p99"))


def print_summary(console: Console, experiment: Experiment, summary: Summary) -> None:
    """Print the summary of a run, at most 80 columns wide."""
    from rich.columns import Columns
    from rich.padding import Padding
    from rich.text import Text

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), width=WIDTH, soft_wrap=False)

    line(f"costs: {summary.get('cost_tables') or 'not stated'}", "dim")
    line(_headline(experiment, summary), "bold")
    line(_volume(experiment, summary))
    if experiment.speculation is not None:
        line(_speculation_line(experiment, summary))
    console.print(_latency_table(experiment, summary), width=WIDTH)
    left = [_group("Throughput", _throughput(summary)), _group("Time", _time_split(summary))]
    right = [_group("Utilisation", _utilisation(summary)), _group("Cost", _cost(summary))]
    for pair in zip(left, right, strict=True):
        console.print(Columns(pair, padding=(0, 2)), width=WIDTH)
        console.print()
    if experiment.slo.is_set:
        line(_slo_line(experiment, summary), "green" if summary.get("slo_met") else "red")
    notes = summary.get("notes")
    for note in notes if isinstance(notes, list) else []:
        console.print(Padding(Text(f"note: {note}", style="yellow"), 0), width=WIDTH)


def _headline(experiment: Experiment, summary: Summary) -> str:
    return (
        f"{experiment.name}: {experiment.model.name} on {summary['num_gpus']} x {summary['gpu']}, "
        f"{experiment.plan}"
    )


def _volume(experiment: Experiment, summary: Summary) -> str:
    parts = [
        f"{_number(summary, 'completed', ',.0f')} of {len(experiment.workload):,} requests "
        f"in {_seconds(summary, 'duration')}"
    ]
    if summary.get("completed_answers"):
        parts.append(f"{_number(summary, 'completed_answers', ',.0f')} answers")
    parts += [
        f"{_number(summary, key, ',.0f')} {name}"
        for key, name in (("failed", "rejected"), ("unfinished", "unfinished"))
        if summary.get(key)
    ]
    return ", ".join(parts)


def _latency_table(experiment: Experiment, summary: Summary) -> Table:
    from rich import box
    from rich.table import Table

    slo = experiment.slo
    targets = {"ttft": slo.ttft_s, "tpot": slo.tpot_s, "e2el": slo.e2e_s}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True, header_style="bold")
    table.add_column("")
    for heading, _ in _COLUMNS:
        table.add_column(heading, justify="right")
    if slo.is_set:
        table.add_column("target", justify="right")
        table.add_column("met by", justify="right")
    for label, metric in _LATENCIES:
        row = [_milliseconds(summary, f"{name}_{metric}_ms") for _, name in _COLUMNS]
        if slo.is_set:
            target = targets.get(metric, float("inf"))
            row.append(show_time(target) if target < float("inf") else "")
            key = f"slo_attainment_{metric.replace('e2el', 'e2e')}"
            row.append(_percent(summary, key) if target < float("inf") else "")
        table.add_row(label, *row)
    return table


def _group(title: str, rows: list[Row]) -> Table:
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=False,
        pad_edge=False,
        width=(WIDTH - 4) // 2,
    )
    table.add_column(ratio=1)
    table.add_column(justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _throughput(summary: Summary) -> list[Row]:
    rows = [
        ("requests/s", _number(summary, "request_throughput", ".4g")),
        ("output tokens/s", _count(summary, "output_throughput")),
        ("total tokens/s", _count(summary, "total_token_throughput")),
        ("total tokens/s/GPU", _count(summary, "total_tokens_per_s_per_gpu")),
        ("tokens/s/user", _number(summary, "output_tokens_per_s_per_user", ".3g")),
    ]
    if summary.get("request_goodput") is not None:
        rows.insert(1, ("goodput, requests/s", _number(summary, "request_goodput", ".4g")))
    return rows


def _time_split(summary: Summary) -> list[Row]:
    names = ("queueing", "prefill", "decode", "preempted")
    return [(f"mean {name}", _seconds(summary, f"mean_{name}_s")) for name in names]


def _sharing(summary: Summary) -> list[Row]:
    if summary.get("kv_saved_by_sharing") is None:
        return []
    return [("KV saved by sharing", _percent(summary, "kv_saved_by_sharing"))]


def _utilisation(summary: Summary) -> list[Row]:
    rows = [
        ("MFU / MBU", f"{_percent(summary, 'mfu')} / {_percent(summary, 'mbu')}"),
        ("KV mean / max", _pair(summary, "mean_kv_utilisation", "max_kv_utilisation", _percent)),
        *_sharing(summary),
        ("running mean / max", _pair(summary, "mean_running", "max_running", _count)),
        ("waiting mean / max", _pair(summary, "mean_waiting", "max_waiting", _count)),
        ("mean seqs / iteration", _number(summary, "mean_num_seqs", ".4g")),
    ]
    if summary.get("prefix_hit_rate"):
        rows.append(("prefix hits", _percent(summary, "prefix_hit_rate")))
    if "offload_hit_tokens" in summary:
        tokens = _number(summary, "offload_hit_tokens", ",.0f")
        moved = (
            show_bytes(_value(summary, f"offload_{way}_bytes") or 0.0)
            for way in ("loaded", "stored")
        )
        rows.append(("loaded from host", f"{tokens} tokens"))
        rows.append(("KV from / to host", " / ".join(moved)))
    return rows


def _cost(summary: Summary) -> list[Row]:
    return [
        ("$ an hour", _number(summary, "usd_per_hour", ",.2f")),
        ("$ / M output tokens", _number(summary, "usd_per_million_output_tokens", ",.3g")),
        ("$ / M total tokens", _number(summary, "usd_per_million_total_tokens", ",.3g")),
        ("J / output token (estimate)", _number(summary, "energy_j_per_output_token", ".3g")),
        ("preemptions", _number(summary, "preemptions", ",.0f")),
    ]


def _speculation_line(experiment: Experiment, summary: Summary) -> str:
    policy = experiment.speculation
    assert policy is not None
    name = f"speculation: {policy.drafter.kind}, {policy.length.kind} length up to "
    return (
        f"{name}{policy.num_speculative_tokens}, mean "
        f"{_number(summary, 'mean_speculative_tokens', '.2g')}; "
        f"{_number(summary, 'spec_decode_acceptance_length', '.3g')} tokens a draft; "
        f"drafting {_percent(summary, 'draft_time_share')} of the time, "
        f"verifying {_percent(summary, 'verify_time_share')}"
    )


def _slo_line(experiment: Experiment, summary: Summary) -> str:
    verdict = "met" if summary.get("slo_met") else "missed"
    return (
        f"SLO {verdict}: {_percent(summary, 'slo_attainment')} of requests meet every target, "
        f"{100 * experiment.slo.attainment:.4g} % wanted"
    )


def _value(summary: Summary, key: str) -> float | None:
    value = summary.get(key)
    return float(value) if isinstance(value, int | float) else None


def _number(summary: Summary, key: str, form: str) -> str:
    value = _value(summary, key)
    return DASH if value is None else format(value, form)


def _count(summary: Summary, key: str) -> str:
    value = _value(summary, key)
    return DASH if value is None else show_count(value)


def _percent(summary: Summary, key: str) -> str:
    value = _value(summary, key)
    return DASH if value is None else f"{100 * value:.3g} %"


def _seconds(summary: Summary, key: str) -> str:
    value = _value(summary, key)
    return DASH if value is None else "0 s" if value == 0 else show_time(value)


def _milliseconds(summary: Summary, key: str) -> str:
    value = _value(summary, key)
    return DASH if value is None else "0 s" if value == 0 else show_time(value / 1000)


def _pair(summary: Summary, first: str, second: str, show: Callable[[Summary, str], str]) -> str:
    return f"{show(summary, first)} / {show(summary, second)}"
