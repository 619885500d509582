"""NanoFlow (OSDI'25): nano-batches whose GEMMs, memory-bound kernels and collectives overlap."""

from __future__ import annotations

from dataclasses import replace

from simulator.costs.overlap import together_s
from simulator.costs.price import price_iteration
from simulator.costs.roofline import compile_cost
from simulator.papers.case import Case, Changes, Line, Measure, Picture
from simulator.segments import segment_table

GEMM_FLOPS_PER_S = 260e12  # of CUTLASS on an A100, as the authors measured it
PARAMETERS = 70e9
COMPUTE_S, MEMORY_S, NETWORK_S = 0.114, 0.045, 0.031  # of an iteration, by the paper's estimates
SEQUENTIAL: Changes = {"engine.nano_batches": None}
ALONE: Changes = {"engine.nano_overlap": "none"}  # nano-batches one after another
# vLLM as the paper ran it: prompts in iterations of their own, 256 sequences.
VLLM: Changes = {
    **SEQUENTIAL,
    "engine.profile": "vllm-0.6",
    "engine.max_num_seqs": 256,
    "engine.max_num_batched_tokens": 4096,
    "scheduler": "vllm_v0",
}
# Tokens/s a GPU of TensorRT-LLM as the authors ran it, by prompt and output.
TENSORRT_LLM = {(512, 512): 735.0, (1024, 512): 817.0, (512, 1024): 636.0}
LENGTHS = ((512, 512), (1024, 512), (512, 1024))
# Model, GPUs, tokens an iteration (of the authors' configurations), and parameters a token passes.
MODELS: dict[str, tuple[str, int, int, float]] = {
    "llama-3-70b": ("llama-3-70b", 8, 2048, 70e9),
    "qwen2-72b": ("qwen2.5-72b", 8, 2048, 72e9),  # of the same shapes
    "mixtral-8x7b": ("mixtral-8x7b", 8, 1024, 12.9e9),
    "llama-3-8b": ("llama-3-8b", 1, 1024, 8e9),
}
PREFILL = (((2048, 0),), ())
DECODE_HEAVY = (((512, 0),), ((1536, 1024),))
Batch = tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]


def optimum(parameters: float = PARAMETERS) -> float:
    """Equation 5: tokens a second and GPU where nothing but GEMMs takes time."""
    return GEMM_FLOPS_PER_S / (2 * parameters)


def exact_optimum(case: Case) -> float:
    return float(round(optimum()))


def throughput(case: Case, changes: Changes) -> float:
    """Tokens computed a second and GPU, prompts included, in the middle half of the run."""

    def make() -> float:
        load = {} if "workload.num_prompts" in changes else {"workload.num_prompts": 6000}
        result = case.simulate({**load, **changes})
        table = segment_table(result)
        middle = (table.start_ns > result.end_ns / 4) & (table.end_ns < result.end_ns * 3 / 4)
        columns = {name: column[middle] for name, column in table.columns.items()}
        tokens = (columns["num_decode"] + columns["prefill_tokens"]) * columns["iterations"]
        span_ns = table.end_ns[middle].max() - table.start_ns[middle].min()
        gpus = case.experiment(changes).plan.num_gpus
        return float(tokens.sum() / (span_ns / 1e9) / gpus)

    return case.once(f"throughput {changes}", make)


def of_lengths(prompt: int, output: int) -> Changes:
    return {"workload.input_len": prompt, "workload.output_len": output}


def mean_ratio(case: Case, rival: Changes) -> float:
    """Over the three pairs of lengths."""
    ratios = [
        throughput(case, of_lengths(*pair)) / throughput(case, {**rival, **of_lengths(*pair)})
        for pair in LENGTHS
    ]
    return sum(ratios) / len(ratios)


def over_sequential(case: Case) -> float:
    return mean_ratio(case, SEQUENTIAL)


def over_vllm(case: Case) -> float:
    return mean_ratio(case, VLLM)


def over_tensorrt_llm(case: Case) -> float:
    """Over our engine without overlap, as much slower as TensorRT-LLM was at 512 in and 512 out.

    Mean of the two other pairs of lengths.
    """
    fitted, *others = LENGTHS
    slower = throughput(case, {**SEQUENTIAL, **of_lengths(*fitted)}) / TENSORRT_LLM[fitted]
    ratios = [
        slower
        * throughput(case, of_lengths(*pair))
        / throughput(case, {**SEQUENTIAL, **of_lengths(*pair)})
        for pair in others
    ]
    return sum(ratios) / len(ratios)


def tensorrt_llm_error(case: Case) -> float:
    """Largest error of that rival on the pairs it was not fitted to, %."""
    fitted, *others = LENGTHS
    slower = throughput(case, {**SEQUENTIAL, **of_lengths(*fitted)}) / TENSORRT_LLM[fitted]
    return max(
        100 * abs(throughput(case, {**SEQUENTIAL, **of_lengths(*p)}) / slower / TENSORRT_LLM[p] - 1)
        for p in others
    )


def share(case: Case) -> float:
    """Of the optimum: the best of the three pairs of lengths, as the paper's headline."""
    return max(throughput(case, of_lengths(*pair)) for pair in LENGTHS) / optimum()


def sequential_share(case: Case) -> float:
    return max(throughput(case, {**SEQUENTIAL, **of_lengths(*p)}) for p in LENGTHS) / optimum()


def cost_of_splitting(case: Case) -> float:
    """Throughput that nano-batches lose where nothing overlaps, %."""
    lost = 1 - throughput(case, ALONE) / throughput(case, SEQUENTIAL)
    return 100 * lost


def _share_of(name: str) -> Measure:
    def share_of_model(case: Case) -> float:
        """1,024 tokens in, 512 out."""
        model, gpus, tokens, parameters = MODELS[name]
        changes: Changes = {
            "model": model,
            "cluster": f"{gpus}xA100-80-SXM",
            "plan": {"tp": gpus},
            "engine.max_num_batched_tokens": tokens,
            "engine.max_num_seqs": tokens,
            **of_lengths(1024, 512),
        }
        return throughput(case, changes) / optimum(parameters)

    return share_of_model


def iteration_s(case: Case, batch: Batch, changes: Changes | None = None) -> float:
    """Price of one iteration."""

    def make() -> object:
        subject = case.experiment(changes)
        settings = replace(subject.settings, max_num_seqs=2048)
        return compile_cost(subject.model, subject.plan, subject.cluster.groups[0], settings)

    return sum(price_iteration(case.once(f"cost {changes}", make), *batch))  # type: ignore[arg-type]


def gain(case: Case, batch: Batch) -> float:
    """Of one iteration: one kernel after another over overlapped."""
    return iteration_s(case, batch, SEQUENTIAL) / iteration_s(case, batch)


def gain_of_prefill(case: Case) -> float:
    return gain(case, PREFILL)


def gain_of_decodes(case: Case) -> float:
    return gain(case, DECODE_HEAVY)


def gain_of_few(case: Case) -> float:
    """The largest at 16 to 255 decodes of context 768."""
    return max(gain(case, ((), ((num, 768),))) for num in (16, 32, 64, 128, 192, 255))


def ideal_gain(case: Case) -> float:
    """The paper's own three times: their sum over the overlapped schedule's bound."""
    apart_s = COMPUTE_S + MEMORY_S + NETWORK_S
    return apart_s / together_s(COMPUTE_S, MEMORY_S, NETWORK_S)


def sum_share(case: Case) -> float:
    """Compute's share of the three times in turn."""
    return COMPUTE_S / (COMPUTE_S + MEMORY_S + NETWORK_S)


MEASURES: dict[str, Measure] = {
    "optimum": exact_optimum,
    "sum_share": sum_share,
    "ideal_gain": ideal_gain,
    "over_sequential": over_sequential,
    "over_vllm": over_vllm,
    "over_tensorrt_llm": over_tensorrt_llm,
    "tensorrt_llm_error": tensorrt_llm_error,
    "share": share,
    "sequential_share": sequential_share,
    "cost_of_splitting": cost_of_splitting,
    "gain_of_prefill": gain_of_prefill,
    "gain_of_decodes": gain_of_decodes,
    "gain_of_few": gain_of_few,
    **{f"share_{name}": _share_of(name) for name in MODELS},
}


def picture(case: Case) -> Picture:
    """Throughput of an iteration, half of it decodes, over its tokens."""
    sizes = (64, 128, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 2048)
    arms: tuple[tuple[str, Changes], ...] = (
        ("one after another", SEQUENTIAL),
        ("nano-batches, nothing overlaps", ALONE),
        ("nano-batches, overlapped", {}),
    )
    return Picture(
        title="Llama-2-70B on 8 A100, half decodes",
        x_label="tokens an iteration",
        y_label="tokens/s a GPU",
        lines=tuple(
            Line(
                label=label,
                x=tuple(float(n) for n in sizes),
                y=tuple(
                    n / 8 / iteration_s(case, (((n // 2, 0),), ((n // 2, 768),)), changes)
                    for n in sizes
                ),
            )
            for label, changes in arms
        ),
    )
