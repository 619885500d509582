"""Makes chat-1k.csv.gz: a synthetic trace shaped like production chat, with nothing recorded in it.

Poisson arrivals at 5.6 requests/s whose rate drifts over minutes; prompts that pile up near 1k and
4k tokens; short answers with a bimodal body; lengths independent of each other. The levels follow
the published statistics of the Azure 2023 conversation trace (Patel et al., ISCA 2024).
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.workloads.arrivals import Arrivals
from simulator.workloads.checks import stream

NUM_REQUESTS = 1000
SEED = 20231116
FILE = Path(__file__).with_name("chat-1k.csv.gz")
# Cumulative probability: tokens.
INPUT_TOKENS = {
    0.0: 20, 0.1: 200, 0.25: 420, 0.45: 980, 0.55: 1080, 0.7: 1180,
    0.86: 1500, 0.89: 3900, 0.9: 4010, 0.98: 4120, 1.0: 4200,
}  # fmt: skip
OUTPUT_TOKENS = {
    0.0: 5, 0.1: 25, 0.3: 70, 0.5: 130, 0.7: 310, 0.8: 400,
    0.9: 432, 0.97: 520, 0.99: 610, 1.0: 900,
}  # fmt: skip


def trace_csv() -> str:
    """The trace as text, the same on every machine."""
    arrivals = Arrivals(rate_per_s=5.6, profile=(0.85, 1.0, 1.15, 1.1, 1.0, 0.9), period_s=180.0)
    seconds = arrivals.times_s(stream(SEED, "chat.arrivals"), num_requests=NUM_REQUESTS)
    inputs = _lengths(INPUT_TOKENS, stream(SEED, "chat.inputs"))
    outputs = _lengths(OUTPUT_TOKENS, stream(SEED, "chat.outputs"))
    rows = zip((seconds - seconds[0]).tolist(), inputs.tolist(), outputs.tolist(), strict=True)
    lines = [f"{second:.6f},{prompt},{output}" for second, prompt, output in rows]
    return "\n".join(["arrival_s,input_tokens,output_tokens", *lines, ""])


def _lengths(quantiles: dict[float, int], rng: np.random.Generator) -> NDArray[np.int64]:
    """One draw from each of NUM_REQUESTS equal slices, shuffled: exact quantiles."""
    levels = (rng.permutation(NUM_REQUESTS) + rng.random(NUM_REQUESTS)) / NUM_REQUESTS
    tokens = np.interp(levels, list(quantiles), list(quantiles.values()))
    return np.rint(tokens).astype(np.int64)


def main() -> None:
    """Write the file beside this script."""
    FILE.write_bytes(gzip.compress(trace_csv().encode(), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()
