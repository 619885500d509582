"""A real server process for the tests, and what its clients measure."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUICKSTART = "experiments/quickstart.yaml"


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    url: str  # without /v1
    process: subprocess.Popen[str]

    def resident_bytes(self) -> int:
        """Memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024


@contextmanager
def serving(*arguments: str, experiment: str = QUICKSTART) -> Iterator[Running]:
    """`headway serve` on a free port, ended with Ctrl-C; it must end well."""
    words: Sequence[str] = (sys.executable, "-m", "simulator", "serve", experiment, "--port", "0")
    process = subprocess.Popen(
        [*words, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"(http://[\w.\[\]:]+)/v1$", line.strip())
        if found is None:
            process.kill()
            raise AssertionError(f"{line!r}; {process.communicate()[1]}")
        yield Running(found[1], process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert (0, "") == (process.returncode, errors)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
