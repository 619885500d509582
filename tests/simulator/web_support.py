"""Pages for the tests of the web report: real results, and an HTML parser that checks nesting."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from simulator.cli import run
from simulator.report.web.markup import VOID

HOSTILE = """</script><script>window.owned=1</script><img src=x onerror='owned=1'>"&amp;é"""
SELF_CLOSED = VOID | {"!doctype"}


class Page(HTMLParser):
    """Elements of a page in order; refuses tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert [] == self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in SELF_CLOSED:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def printed(*words: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert 0 == run([*words, "--json"])
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def search_result(*more: str) -> dict[str, Any]:
    """A search of 60 requests over four GPUs, in this process."""
    words = ["--model", "llama-3.1-8b", "--cluster", "4xH100-SXM", "--trace", "chat-1k"]
    words += ["--max-requests", "60", "--jobs", "1", "--no-prune", *more]
    return printed("search", *words)


def enlarged(search: Mapping[str, Any], num_plans: int) -> dict[str, Any]:
    """The same search with its plans repeated until there are so many, ranks and labels apart."""
    found = copy.deepcopy(dict(search))
    ranked = [plan for plan in found["plans"] if plan["rank"] is not None]
    plans = []
    for number in range(num_plans):
        plan = copy.deepcopy(ranked[number % len(ranked)])
        plan["rank"], plan["label"] = number + 1, f"{plan['label']} v{number}"
        plans.append(plan)
    found["plans"] = plans
    return found


def written(folder: Path, **documents: Mapping[str, Any]) -> list[str]:
    """Files of these documents."""
    paths = []
    for name, document in documents.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        paths.append(str(path))
    return paths
