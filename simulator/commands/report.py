"""`headway report`: results as one HTML page that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simulator.report.web import read_document, report
from simulator.save import check_writable, replacing
from simulator.units import show_bytes

SUFFIXES = (".html", ".htm")
DEFAULT = "report.html"


def run(results: Sequence[str], values: dict[str, Any]) -> None:
    """Read every result, write the page, say what was written."""
    target = values["output"] or DEFAULT
    check_writable(target, SUFFIXES)
    page = report([read_document(path) for path in results]).encode()
    with replacing(target, SUFFIXES) as place:
        place.write_bytes(page)
    num = len(results)
    print(f"{target}: {num} result{'s' if num > 1 else ''}, {show_bytes(len(page))}")
