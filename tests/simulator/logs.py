"""Results built by hand: a small consistent log, and one drawn at random with its token times."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulator.experiment import Experiment
from simulator.metrics import summarise
from simulator.recorder import COMPLETED, SEGMENT_COLUMNS, LaneResult, Result
from simulator.request import RequestTable
from simulator.spec import (
    AttentionSpec,
    ClusterSpec,
    EngineSettings,
    FfnSpec,
    GpuSpec,
    LayerSpec,
    LinkSpec,
    ModelSpec,
    NodeGroup,
    ParallelPlan,
    Slo,
)

MS = 1_000_000
SPANS = ("span_request", "span_lane", "span_first", "span_last")
LINK = LinkSpec(name="link", bytes_per_s=1e11, latency_s=1e-6)
GPU = GpuSpec(
    name="toy",
    memory_bytes=1e9,
    memory_bytes_per_s=1e8,
    flops_per_s={"bf16": 1e8},
    num_sms=10,
    l2_bytes=1e6,
    tdp_w=300.0,
    idle_w=100.0,
    price_per_hour=3.6,
    price_date="2026-01",
    gpu_link=LINK,
    host_link=LINK,
    gpus_per_node=8,
    inter_node=LINK,
)
# 64 hidden, 2 layers of 4 heads x 16 (2 of KV): every count below fits on paper.
LAYER = LayerSpec(
    attention=AttentionSpec(num_q_heads=4, num_kv_heads=2, head_dim=16),
    ffn=FfnSpec(ffn_size=128),
)
MODEL = ModelSpec(
    name="toy-model",
    architecture="ToyForCausalLM",
    hidden_size=64,
    vocab_size=100,
    layer_kinds=(LAYER,),
    layer_order=(0, 0),
    tied_embeddings=False,
    max_context_tokens=4096,
)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def experiment(
    table: RequestTable,
    *,
    plan: ParallelPlan | None = None,
    slo: Slo | None = None,
    model: ModelSpec = MODEL,
) -> Experiment:
    group = NodeGroup(num_nodes=4, gpus_per_node=8, gpu=GPU)
    return Experiment(
        model=model,
        cluster=ClusterSpec(name="toy", groups=(group,)),
        plan=plan or ParallelPlan(),
        settings=EngineSettings(max_num_batched_tokens=512, max_num_seqs=16),
        workload=table,
        slo=slo or Slo(),
        name="by-hand",
    )


def summary_of(result: Result, **changes: object) -> dict[str, object]:
    return summarise(experiment(result.table, **changes), result)  # type: ignore[arg-type]


def numbers(summary: dict[str, object], *keys: str) -> list[float]:
    return [float(summary[key]) for key in keys]  # type: ignore[arg-type]


def lane(
    rows: list[dict[str, int]],
    starts_ns: list[int],
    ends_ns: list[int],
    *,
    replica: int = 0,
    rank: int = 0,
    number: int = 0,
) -> LaneResult:
    """A lane from one dict a segment; columns left out are 0, iterations 1."""
    defaults = dict.fromkeys(SEGMENT_COLUMNS, 0) | {"iterations": 1}
    return LaneResult(
        replica=replica,
        rank=rank,
        lane=number,
        end_ns=ints(*ends_ns),
        segment_start_ns=ints(*starts_ns),
        segments={k: ints(*((defaults | row)[k] for row in rows)) for k in SEGMENT_COLUMNS},
    )


def spans(*rows: tuple[int, int, int, int]) -> dict[str, NDArray[np.int64]]:
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return dict(zip(SPANS, columns, strict=True))


def by_hand() -> Result:
    """Two requests on one lane, times in ms; the second is preempted once.

    Iterations end at 10, 20, 30, 40, 50, 60. Request 0 (8 prompt, 3 output) is sent at 0, admitted
    at 0, and gets tokens at 10, 20, 30. Request 1 (6 prompt, 4 output) is sent at 5, admitted at
    10, gets tokens at 20 and 30, is preempted, and gets its last two at 50 and 60.
    """
    table = RequestTable(
        arrival_ns=ints(0, 5 * MS), prompt_tokens=ints(8, 6), output_tokens=ints(3, 4)
    )
    rows = [
        {"num_prefill": 1, "prefill_tokens": 8, "prefill_pairs": 36, "sampled": 1},
        {"num_decode": 1, "decode_kv_tokens": 9, "num_prefill": 1, "prefill_tokens": 6},
        {"num_decode": 2, "decode_kv_tokens": 17, "sampled": 2},
        {"num_prefill": 1, "prefill_tokens": 4, "prefill_pairs": 10},
        {"num_prefill": 1, "prefill_tokens": 4, "prefill_pairs": 26, "sampled": 1},
        {"num_decode": 1, "decode_kv_tokens": 9, "sampled": 1},
    ]
    rows[1] |= {"prefill_pairs": 21, "sampled": 2}
    for row, used in zip(rows, (1, 2, 3, 1, 1, 1), strict=True):
        row["used_blocks"] = used
    ends = [10 * MS * (i + 1) for i in range(6)]
    return Result(
        table=table,
        status=ints(COMPLETED, COMPLETED),
        sent_ns=ints(0, 5 * MS),
        scheduled_ns=ints(0, 10 * MS),
        first_token_ns=ints(10 * MS, 20 * MS),
        finish_ns=ints(30 * MS, 60 * MS),
        cached_tokens=ints(0, 3),
        preemptions=ints(0, 1),
        target=ints(0, 0),
        lanes=(lane(rows, [0, *ends[:-1]], ends),),
        spans=spans((1, 0, 1, 2), (0, 0, 0, 2), (1, 0, 4, 5)),
        num_blocks=(4,),
        block_tokens=8,
        end_ns=60 * MS,
    )


def one_token(**changes: object) -> Result:
    """One request of one output token: sent at 0, served in one iteration of 10 ms."""
    result = Result(
        table=RequestTable(arrival_ns=ints(0), prompt_tokens=ints(8), output_tokens=ints(1)),
        status=ints(COMPLETED),
        sent_ns=ints(0),
        scheduled_ns=ints(0),
        first_token_ns=ints(10 * MS),
        finish_ns=ints(10 * MS),
        cached_tokens=ints(0),
        preemptions=ints(0),
        target=ints(0),
        lanes=(lane([{"num_prefill": 1, "prefill_tokens": 8, "sampled": 1}], [0], [10 * MS]),),
        spans=spans((0, 0, 0, 0)),
        num_blocks=(4,),
        block_tokens=8,
        end_ns=10 * MS,
    )
    return replace(result, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Drawn:
    """A random result and the token times of each of its requests, kept token by token."""

    result: Result
    token_ns: list[list[int]]


def draw(rng: np.random.Generator, num_requests: int, num_lanes: int, length: int) -> Drawn:
    """Spans of random lanes and lengths, one after the other in time, on lanes with random ends."""
    ends = [np.cumsum(rng.integers(1, 9, length)) * MS for _ in range(num_lanes)]
    decodes = np.zeros((num_lanes, length), dtype=np.int64)
    sampled = np.zeros((num_lanes, length), dtype=np.int64)
    token_ns: list[list[int]] = []
    rows: list[tuple[int, int, int, int]] = []
    for request in range(num_requests):
        times: list[int] = []
        for _ in range(int(rng.integers(1, 4))):
            where = int(rng.integers(num_lanes))
            earliest = int(np.searchsorted(ends[where], times[-1], side="right")) if times else 0
            if earliest >= length:
                break
            first = int(rng.integers(earliest, length))
            last = int(rng.integers(first, length))
            rows.append((request, where, first, last))
            decodes[where, first + 1 : last + 1] += 1
            sampled[where, first : last + 1] += 1
            times += ends[where][first : last + 1].tolist()
        token_ns.append(times)
    order = rng.permutation(len(rows))
    lanes = tuple(
        lane(
            [
                {"num_decode": int(d), "decode_kv_tokens": int(d) * 5, "sampled": int(s)}
                for d, s in zip(decodes[i], sampled[i], strict=True)
            ],
            [0, *ends[i][:-1].tolist()],
            ends[i].tolist(),
            number=i,
        )
        for i in range(num_lanes)
    )
    result = _drawn_result(token_ns, lanes, spans(*(rows[i] for i in order)))
    return Drawn(result, token_ns)


def _drawn_result(
    token_ns: list[list[int]], lanes: tuple[LaneResult, ...], log: dict[str, NDArray[np.int64]]
) -> Result:
    zeros = np.zeros(len(token_ns), dtype=np.int64)
    first = ints(*(times[0] for times in token_ns))
    return Result(
        table=RequestTable(
            arrival_ns=zeros,
            prompt_tokens=zeros + 4,
            output_tokens=ints(*(len(times) for times in token_ns)),
        ),
        status=zeros + COMPLETED,
        sent_ns=zeros,
        scheduled_ns=zeros,
        first_token_ns=first,
        finish_ns=ints(*(times[-1] for times in token_ns)),
        cached_tokens=zeros,
        preemptions=zeros,
        target=zeros,
        lanes=lanes,
        spans=log,
        num_blocks=(100,),
        block_tokens=16,
        end_ns=max(int(x.end_ns[-1]) for x in lanes),
    )
