"""The command-line flags as tables: each row is a flag, its type, and the YAML key it overrides.

A command's signature for typer and the overriding of its YAML file both come from these rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One option of a command."""

    name: str
    help: str
    short: str = ""  # "-o"
    key: str = ""  # dotted YAML key it overrides; "" = the command reads it itself
    kind: type = str  # of its value, in the file's checks; bool = a switch
    sets: bool = True  # what a switch sets its key to
    many: bool = False  # may be repeated
    panel: str = "Output"
    metavar: str = ""

    @property
    def parameter(self) -> str:
        return self.name.removeprefix("--").replace("-", "_")


def _panel(panel: str, *flags: Flag) -> tuple[Flag, ...]:
    return tuple(replace(flag, panel=panel) for flag in flags)


WHAT = _panel(
    "What is served",
    Flag(name="--model", key="model", help="Bundled model, Hugging Face id, or config.json."),
    Flag(name="--cluster", key="cluster", help="GPUs: 8xH100-SXM, 2x8xH200-SXM, …"),
    Flag(name="--weight-format", key="weight_format", help="bf16, fp8, int8, int4_g128, mxfp4."),
    Flag(name="--kv-format", key="kv_format", help="bf16, fp8, int8, int4."),
)
PLAN = _panel(
    "Plan",
    Flag(name="--tp", key="plan.tp", kind=int, help="Tensor-parallel degree."),
    Flag(name="--pp", key="plan.pp", kind=int, help="Pipeline stages."),
    Flag(name="--dp", key="plan.dp", kind=int, help="Replicas behind the router."),
    Flag(name="--ep", key="plan.ep", kind=int, help="GPUs the experts are spread over."),
    Flag(
        name="--attention-dp",
        key="plan.attention_dp",
        kind=int,
        help="Attention ranks of a stage that step together.",
    ),
)
LIMITS = _panel(
    "Engine",
    Flag(
        name="--max-num-batched-tokens",
        key="engine.max_num_batched_tokens",
        kind=int,
        help="Token budget of an iteration.",
    ),
    Flag(
        name="--max-num-seqs",
        key="engine.max_num_seqs",
        kind=int,
        help="Most sequences running at once.",
    ),
)
ENGINE = _panel(
    "Engine",
    Flag(
        name="--max-model-len",
        key="engine.max_model_len",
        kind=int,
        help="Longest context served.",
    ),
    Flag(
        name="--gpu-memory-utilization",
        key="engine.gpu_memory_utilization",
        kind=float,
        help="Share of GPU memory used.",
    ),
    Flag(
        name="--no-prefix-caching",
        key="engine.prefix_caching",
        kind=bool,
        sets=False,
        help="Never reuse KV blocks.",
    ),
    Flag(
        name="--no-cuda-graphs",
        key="engine.cuda_graphs",
        kind=bool,
        sets=False,
        help="As vLLM's --enforce-eager.",
    ),
    Flag(
        name="--calibration",
        key="engine.calibration",
        metavar="FOLDER",
        help="Kernel times fitted by `headway calibrate`; roofline = none at all.",
    ),
    Flag(
        name="--extrapolate",
        key="engine.extrapolate",
        kind=bool,
        help="Use them far beyond what was measured.",
    ),
    Flag(
        name="--set",
        many=True,
        metavar="KEY=VALUE",
        help="Any other YAML key: scheduler.long_prefill_token_threshold=512.",
    ),
)
POLICIES = _panel(
    "Engine",
    Flag(name="--scheduler", key="scheduler", help="Kind of scheduler (vllm_v1, …)."),
    Flag(name="--allocator", key="allocator", help="Kind of KV allocator (paged, buddy, …)."),
    Flag(name="--router", key="router", help="Kind of router (round_robin, …)."),
)
SPECULATION = _panel(
    "Speculation",
    Flag(
        name="--speculation",
        key="speculation.drafter.kind",
        metavar="KIND",
        help="Drafter: draft_model, ngram, lookahead, eagle, tree, kangaroo.",
    ),
    Flag(name="--draft-model", key="speculation.drafter.model", help="Model of draft_model."),
    Flag(
        name="--num-speculative-tokens",
        key="speculation.num_speculative_tokens",
        kind=int,
        metavar="K",
        help="Longest draft, or depth of a tree.",
    ),
    Flag(
        name="--acceptance",
        key="speculation.acceptance",
        kind=float,
        metavar="A",
        help="Chance that a drafted token is accepted.",
    ),
    Flag(
        name="--draft-length",
        key="speculation.length.kind",
        metavar="KIND",
        help="How far to draft: fixed, smartspec, batch_table, none.",
    ),
)
WORKLOAD = _panel(
    "Workload",
    Flag(name="--trace", key="workload", help="Trace file, or a workload by name (chat-1k)."),
    Flag(
        name="--num-prompts",
        key="workload.num_prompts",
        kind=int,
        help="Synthetic load: number of requests.",
    ),
    Flag(
        name="--request-rate",
        key="workload.request_rate",
        kind=float,
        metavar="RATE",
        help="Synthetic load: requests/s, or inf.",
    ),
    Flag(
        name="--input-len",
        key="workload.input_len",
        kind=int,
        help="Synthetic load: prompt tokens.",
    ),
    Flag(
        name="--output-len",
        key="workload.output_len",
        kind=int,
        help="Synthetic load: output tokens.",
    ),
    Flag(
        name="--n",
        key="workload.n",
        kind=int,
        help="Answers sampled from each prompt.",
    ),
    Flag(
        name="--beam-width",
        key="workload.beam_width",
        kind=int,
        metavar="N",
        help="Beams of a search instead (--scheduler vllm_v0).",
    ),
    Flag(
        name="--max-concurrency",
        key="workload.max_concurrency",
        kind=int,
        help="Most requests in flight at once.",
    ),
    Flag(
        name="--rate-scale",
        key="workload.rate_scale",
        kind=float,
        help="Arrival rate times this.",
    ),
    Flag(name="--start", key="workload.start", metavar="TIME", help="Skip earlier arrivals."),
    Flag(name="--end", key="workload.end", metavar="TIME", help="Skip later arrivals."),
    Flag(
        name="--max-requests",
        key="workload.max_requests",
        kind=int,
        help="Only the first so many requests.",
    ),
    Flag(
        name="--slo",
        many=True,
        metavar="NAME=TIME",
        help="Target: ttft=1s, tpot=50ms, e2e=30s, attainment=0.99.",
    ),
)
RUN = _panel(
    "Run",
    Flag(name="--seed", key="seed", kind=int, help="Seed of every random draw."),
    Flag(
        name="--horizon",
        key="horizon",
        metavar="TIME",
        help="Simulated time after which the run is cut.",
    ),
)
COALESCE = _panel(
    "Run",
    Flag(
        name="--no-coalesce",
        key="coalesce",
        kind=bool,
        sets=False,
        help="One iteration at a time: same request times, slower.",
    ),
)
DRAWS = 20
UNCERTAINTY = _panel(
    "Run",
    Flag(
        name="--uncertainty",
        metavar="[N]",
        help=f"Intervals from N draws of the errors of kernel prices; alone: {DRAWS}.",
    ),
)
JSON = Flag(name="--json", kind=bool, help="Print one JSON document.")
FIGURES = Flag(name="--figures", metavar="FOLDER", help="Write figures there, as PNG.")
SAVE = (
    Flag(name="--save-result", metavar="FILE", help="Write the result of vllm bench serve, .json."),
    Flag(name="--save-detailed", kind=bool, help="With arrays a request in --save-result."),
    Flag(name="--requests-out", metavar="FILE", help="Write a row a request, .csv or .parquet."),
    FIGURES,
    Flag(name="--timeline", metavar="FILE", help="Write a trace for Perfetto, .json."),
    Flag(
        name="--timeline-window",
        metavar="START:END",
        help="Simulated time in it, such as 10s:20s; default: what 40 MB hold.",
    ),
    Flag(
        name="--metrics-out",
        metavar="FILE",
        help="Write vLLM's Prometheus metrics over simulated time, as OpenMetrics, .prom or .txt.",
    ),
    Flag(
        name="--metrics-interval",
        metavar="TIME",
        help="Between two samples, such as 10s; default: the least that 10 MB hold, from 1 s.",
    ),
)


def _lists(*flags: Flag) -> tuple[Flag, ...]:
    """The same flags as comma-separated lists of what a search tries."""
    renamed = {"weight_format": "weight_formats", "kv_format": "kv_formats"}
    changed = []
    for flag in flags:
        leaf = flag.key.split(".")[-1]
        changed.append(
            replace(
                flag,
                key=f"search.{renamed.get(leaf, leaf)}",
                kind=str,
                panel="What is tried",
                metavar="A,B,…",
            )
        )
    return tuple(changed)


TRIED = _lists(*PLAN, *LIMITS, *WHAT[2:])
QUESTION = _panel(
    "Question",
    Flag(
        name="--objective",
        key="search.objective",
        help="e2e, ttft, tpot, goodput, cost, energy or gpus.",
    ),
    Flag(
        name="--statistic",
        key="search.objective_statistic",
        help="Of a latency objective: mean, p50, p90 or p99.",
    ),
    Flag(
        name="--use-all-gpus",
        key="search.use_all_gpus",
        kind=bool,
        help="Every plan fills the cluster.",
    ),
    Flag(
        name="--no-prune",
        key="search.prune",
        kind=bool,
        sets=False,
        help="Simulate even plans that cannot win.",
    ),
    Flag(name="--jobs", key="search.jobs", kind=int, help="Processes; default: all cores."),
    Flag(name="--store", metavar="FILE", help="Keep finished simulations; resume from them."),
)
ARMS = _panel(
    "Comparison",
    Flag(
        name="--vary",
        many=True,
        metavar="[NAME:] KEY=VALUE; …",
        help="One more experiment: the first one with these YAML keys. Repeatable.",
    ),
    Flag(name="--seeds", metavar="N", help="Seeds each runs under, from --seed on; default 5."),
    Flag(name="--jobs", metavar="INT", help="Processes; default: all cores."),
)
BATCH = _panel(
    "Iteration",
    Flag(
        name="--prefill",
        many=True,
        metavar="N[@CTX]",
        help="A chunk of N prompt tokens after CTX in KV.",
    ),
    Flag(
        name="--decode",
        many=True,
        metavar="B@CTX",
        help="B decoding sequences with CTX tokens in KV.",
    ),
)

COLUMN = Flag(
    name="--set",
    many=True,
    metavar="COLUMN=VALUE",
    help="What a result does not state, as a column of a run: max_num_seqs=256.",
)
CALIBRATE = _panel(
    "Calibration",
    Flag(name="--system", help="import: h200_sxm, h100_sxm, a100_sxm, b200_sxm, l40s, …"),
    Flag(name="--engine", help="import, from-bench: vllm, sglang or trtllm (tensorrt-llm)."),
    Flag(name="--out", metavar="FOLDER", help="Where tables and curves are written."),
    Flag(name="--source", metavar="FOLDER", help="import: systems folder, if not installed."),
    Flag(name="--gpu", help="import, from-bench: the GPU that was measured."),
    Flag(name="--model", help="vllm-forward: the model that ran; from-bench: if not the result's."),
    Flag(name="--tp", help="vllm-forward, from-bench: GPUs that shared each layer; default 1."),
    Flag(name="--engine-version", help="from-bench: of the server, such as 0.15.1."),
    COLUMN,
    Flag(name="--profile", help="from-bench: engine profile to start from."),
    Flag(name="--to", help="transfer: the GPU whose datasheet the curves take over."),
    Flag(
        name="--points",
        metavar="PATH",
        many=True,
        help="transfer: folder of tables, or one table, measured on it. Repeatable.",
    ),
    Flag(
        name="--across-generations",
        kind=bool,
        help="transfer: from another generation too, tens of per cent off.",
    ),
    Flag(name="--compact", kind=bool, help="fit: fewer trees, a file small enough to ship."),
    JSON,
)
EXPERIMENT = (*WHAT, *PLAN, *LIMITS, *ENGINE, *POLICIES, *SPECULATION, *WORKLOAD, *RUN, *COALESCE)
SIMULATE = (*EXPERIMENT, *UNCERTAINTY, JSON, *SAVE)
COMPARE = (
    *ARMS,
    *EXPERIMENT,
    JSON,
    Flag(name="--figure", metavar="FILE", help="Draw the differences, .png, .svg or .pdf."),
)
SEARCH = (*WHAT[:2], *QUESTION, *TRIED, *ENGINE, *POLICIES, *WORKLOAD, *RUN)
SEARCH += (*UNCERTAINTY, JSON, FIGURES)
SEARCH += (
    Flag(name="--deploy", help="Best plan for vllm, sglang, tensorrt-llm or kubernetes."),
    Flag(name="--deploy-out", metavar="FILE", help="Write that there."),
)
EXPLAIN = (*WHAT, *PLAN, *LIMITS, *ENGINE, *BATCH, JSON)
SERVE = (*WHAT, *PLAN, *LIMITS, *ENGINE, *POLICIES, RUN[0])
SERVE += _panel(
    "Server",
    Flag(name="--speed", help="Simulated seconds a second; default 1."),
    Flag(name="--host", help="Address to listen on; default 127.0.0.1, this machine alone."),
    Flag(name="--port", metavar="INT", help="Port; default 8000; 0 = any that is free."),
    Flag(name="--served-model-name", help="Name in requests; default: the model's."),
    Flag(name="--max-pending", metavar="INT", help="Requests in flight, then 429; default 4096."),
    Flag(name="--max-body", metavar="BYTES", help="Longest body, then 413; default 4194304."),
    Flag(name="--client-ms", help="Of front-end time, left to HTTP and the client; default 1."),
    Flag(name="--patience", metavar="SECONDS", help="With a client that stalls; default 30."),
    Flag(name="--requests-out", metavar="FILE", help="A row a request as it ends: a trace, .csv."),
    Flag(name="--grace", metavar="SECONDS", help="For answers to end at Ctrl-C; default 30."),
)
REPRODUCE = _panel(
    "Reproduction",
    Flag(name="--all", kind=bool, help="Every system."),
    Flag(name="--quick", kind=bool, help="Fewer seeds and requests."),
    Flag(name="--jobs", metavar="INT", help="Processes; default: all cores."),
    Flag(name="--draw", kind=bool, help="Write each system's picture.png into its folder."),
    JSON,
)

VALIDATE = (
    *_panel(
        "Runs",
        Flag(name="--workloads", help="Folder of the workload files; default: that of the runs."),
        Flag(name="--where", help="Only rows for which this holds, as pandas' query reads it."),
    ),
    *_panel(
        "What a benchmark's result does not state",
        Flag(name="--against", metavar="EXPERIMENT.yaml", help="All but the load, from that file."),
        Flag(name="--gpu", help="The GPU that was measured."),
        Flag(name="--model", help="The model, if the result does not say."),
        Flag(name="--tp", help="GPUs that shared each layer; default 1."),
        Flag(name="--engine", help="vllm, sglang or tensorrt-llm, if the result does not say."),
        Flag(name="--engine-version", help="Of the server, such as 0.15.1; default: the newest."),
        COLUMN,
    ),
    *_panel(
        "Model",
        Flag(name="--profile", help="Engine profile in place of that of each row's version."),
        Flag(name="--calibration", help="Folder of fitted kernel times, or roofline."),
        Flag(name="--jobs", kind=int, help="Processes; default: one a core."),
    ),
    *_panel(
        "Output",
        Flag(name="--explain", help="Split the gap of this run over its possible causes."),
        Flag(name="--figure", help="Write predicted against measured as a PNG, SVG or PDF."),
        Flag(name="--all", kind=bool, help="List every run, not the furthest off only."),
        JSON,
    ),
)

REPORT = (
    Flag(name="--output", short="-o", metavar="FILE", help="The page, .html; default report.html."),
)
