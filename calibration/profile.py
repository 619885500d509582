"""Points into trials: the kernels of `kernels/` and torch's own, checked before they are timed.

The only module that knows `kernels`. It names them by text and imports them when a point needs
one: a grid can be listed, and types checked, where torch is not installed.
"""

from __future__ import annotations

import importlib
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from calibration.measure import Cell, Made, Maker, Rejected, Trial, one_line, torch_module
from calibration.suites import TUNE_LARGE_M, TUNE_SMALL_M, Point, layer_parts
from calibration.system import CEILINGS, ceiling, shape_of

Case = Any  # kernels.cases.Case
Run = Callable[..., Any]
MOST_COPIES = 24  # sets of inputs; beyond, the L2 cache is flushed between calls
NAMES = {"m": "num_tokens", "n": "out_size", "k": "in_size"}
MOE_NAMES = {"top_k": "experts_per_token"}
# Maker -> module of `kernels`, constructor, fixed arguments.
CASES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "dense": ("gemm", "gemm_case", {}),
    "int4_g128": ("gemm_int4", "gemm_int4_case", {}),
    "fp8": ("gemm_fp8", "gemm_fp8_case", {"scales": "row"}),
    "fp8_block": ("gemm_fp8", "gemm_fp8_case", {"scales": "block"}),
    "int8": ("gemm_int8", "gemm_int8_case", {}),
    "moe": ("grouped_gemm_cases", "moe_case", {}),
    "grouped": ("grouped_gemm_cases", "grouped_gemm_case", {}),
    "decode": ("decode_cases", "decode_attention_case", {}),
    "decode_fp8": ("decode_cases", "decode_attention_case", {}),
    "mla": ("decode_cases", "mla_decode_case", {}),
    "sparse": ("prefill_cases", "block_sparse_attention_case", {}),
    "norm": ("elementwise", "rmsnorm_case", {}),
    "gated": ("elementwise", "gated_case", {}),
    "rope": ("rope_kv", "rope_kv_case", {}),
    "quantize": ("quantize", "quantize_case", {}),
    "sample": ("sampling", "sample_case", {}),
    "kv_copy": ("kv_copy", "kv_copy_case", {}),
}


def kernels(module: str) -> Any:
    """A submodule of our `kernels`.

    Raises:
        RuntimeError: the package found under that name is another distribution's.
    """
    if not getattr(importlib.import_module("kernels"), "HEADWAY", False):
        raise RuntimeError(
            "the installed 'kernels' is Hugging Face's: run from the repository's root, in an "
            "environment without it"
        )
    return importlib.import_module(f"kernels.{module}")


def maker(device: Any, l2_bytes: int) -> Maker:
    """Prepares points on a device."""

    def make(point: Point) -> Made:
        if point.maker in CEILINGS:
            return ceiling(point, l2_bytes)
        arguments = dict(point.arguments)
        if point.maker == "layer":
            return arguments, layer_trials(device, l2_bytes, **arguments)
        case, labels, names = build(point.maker, arguments)
        config = config_label(point.maker, case, device)
        return {**labels, **shape_of(case.shape, names)}, trials(case, device, l2_bytes, config)

    return make


def build(name: str, arguments: Mapping[str, Any]) -> tuple[Case, dict[str, Cell], dict[str, str]]:
    """The case, the label columns that its shape lacks, and the tables' names of its columns."""
    if name.startswith("tune_"):
        return _every_config(name.removeprefix("tune_"), arguments), {}, {}
    if name == "prefill":
        both = {"num_seqs": 1, **arguments}
        case = kernels("prefill_cases").prefill_attention_case(**both)
        return case, {"compute_format": "bf16"}, {}
    if name == "mixed":
        return _mixed(**arguments), {}, {}
    module, constructor, fixed = CASES[name]
    case = getattr(kernels(module), constructor)(**arguments, **fixed)
    if name in ("dense", "int4_g128"):
        return case, {"format": "bf16" if name == "dense" else name}, NAMES
    if name in ("fp8", "fp8_block", "int8"):
        return _with_quantisation(case, name), {"format": name}, NAMES
    if name == "moe":
        shape = dict(case.shape)
        shape["skew_percent"] = round(100 * shape.pop("skew"))
        shape |= {"local_experts": shape["num_experts"], "is_gated": 1}
        return replace(case, shape=shape), {"format": "bf16"}, MOE_NAMES
    return case, {"dtype": case.dtype}, {}


def trials(case: Case, device: Any, l2_bytes: int, config: str = "") -> Iterator[Trial | Rejected]:
    """Every provider that agrees with the reference."""
    chip = kernels("configs").capability(device)
    if chip < case.capability:
        yield Rejected("*", f"needs sm_{case.capability}, this is sm_{chip}")
        return
    needed = 1 if case.bytes > 8 * l2_bytes else case.copies(l2_bytes)
    inputs = [make_inputs(case, device, i) for i in range(min(needed, MOST_COPIES))]
    for kernel, run in case.providers.items():
        if problem := problem_of(case, run, inputs[0]):
            yield Rejected(kernel, problem)
            continue
        yield Trial(
            kernel=kernel, calls=[partial(run, *x) for x in inputs],
            flush=needed > MOST_COPIES, config=config if kernel == "headway" else "",
        )  # fmt: skip


def make_inputs(case: Case, device: Any, copy: int) -> tuple[Any, ...]:
    """The same every time."""
    generator = torch_module().Generator(device=device)
    generator.manual_seed(zlib.crc32(case.name.encode()) + copy)
    return tuple(case.make_inputs(device, generator))


def problem_of(case: Case, run: Run, inputs: tuple[Any, ...]) -> str:
    """Why a provider yields no number here; empty if it agrees. Where the naive reference does not
    fit in memory, two independent kernels must agree with each other."""
    torch = torch_module()
    try:
        try:
            return str(case.problem(run, inputs))
        except torch.cuda.OutOfMemoryError:
            pass  # its traceback holds tensors: leave the handler before freeing them
        torch.cuda.empty_cache()
        other = next((x for x in case.providers.values() if x is not run), None)
        if other is None:
            return "the reference does not fit in memory and there is no second kernel"
        return str(replace(case, reference=other).problem(run, inputs))
    except Exception as error:  # a provider that this chip or torch lacks
        return f"not available: {one_line(error)}"


def config_label(name: str, case: Case, device: Any) -> str:
    """The tile configuration that our kernel picks here; empty where it has none."""
    linear, attention, shape = kernels("configs"), kernels("attention_configs"), case.shape
    chip = linear.capability(device)
    try:
        if name in ("dense", "fp8", "fp8_block", "int8", "int4_g128"):
            op = {"dense": "gemm", "int4_g128": "gemm_int4"}.get(name, f"gemm_{name}")
            return str(linear.pick(op, chip, **{x: shape[x] for x in "mnk"}).label)
        if name in ("moe", "grouped"):
            slots = shape.get("top_k", 1) * shape["num_tokens"]
            rows = math.ceil(slots / shape["num_experts"])
            return str(linear.pick("grouped_gemm", chip, m=rows).label)
        if name == "mla":
            sizes = {"head_dim": 576, "rows": shape["num_heads"]}
            return str(attention.pick("mla_decode", device, **sizes).label)
        if name in ("decode", "decode_fp8", "prefill"):
            op, sizes = _attention_sizes(name, shape)
            return str(attention.pick(op, device, **sizes).label)
    except ValueError:  # no row for this chip: the kernel says so itself
        return ""
    return ""


def _attention_sizes(name: str, shape: Mapping[str, Any]) -> tuple[str, dict[str, int]]:
    group = shape["num_q_heads"] // shape["num_kv_heads"]
    if name != "prefill":
        sizes = {"head_dim": shape["head_dim"], "rows": group * shape["num_queries"]}
        return "paged_attention", sizes
    used = (shape["window"], shape["softcap"], shape["kv_format"] != "bf16")
    features = sum(map(bool, used)) + (shape["block_tokens"] == 0)
    sizes = {"head_dim": shape["head_dim"], "rows": group * shape["num_tokens"]}
    return "prefill_attention", {**sizes, "features": features}


def _with_quantisation(case: Case, name: str) -> Case:
    """Of a quantised GEMM, activations in bf16: what a layer pays. Both providers use our
    quantisation kernel."""
    torch, quantize = torch_module(), kernels("quantize").quantize
    reference = kernels("reference_linear").quantize_reference
    kind = torch.int8 if name == "int8" else torch.float8_e4m3fn
    m, k = case.shape["m"], case.shape["k"]
    group = 128 if name == "fp8_block" else 0

    def make(device: Any, generator: Any) -> tuple[Any, ...]:
        _, b, _, scale_b, arrivals = case.make_inputs(device, generator)
        x = torch.randn(m, k, device=device, generator=generator).to(torch.bfloat16)
        return x, b, scale_b, arrivals

    def around(inner: Run, quantise: Run) -> Run:
        def run(x: Any, b: Any, scale_b: Any, arrivals: Any) -> Any:
            q, scale = quantise(x)
            return inner(q, b, scale if group else scale.view(-1), scale_b, arrivals)

        return run

    return replace(
        case, make_inputs=make, bytes=case.bytes + 3 * m * k,
        reference=around(case.reference, lambda x: reference(x, group or k, kind)),
        providers={p: around(run, lambda x: quantize(x, kind, group))
                   for p, run in case.providers.items()},
    )  # fmt: skip


def _mixed(
    *, num_tokens: int, context_tokens: int, num_decodes: int, decode_kv_tokens: int
) -> Case:
    """A chunk's attention and the decodes' as two launches, back to back."""
    chunk = kernels("prefill_cases").prefill_attention_case(
        num_seqs=1, num_tokens=num_tokens, context_tokens=context_tokens
    )
    decode = kernels("decode_cases").decode_attention_case(
        num_seqs=num_decodes, kv_tokens=decode_kv_tokens
    )

    def make(device: Any, generator: Any) -> tuple[Any, ...]:
        parts = [c.make_inputs(device, generator) for c in (chunk, decode)]
        return *parts[0], *parts[1]

    def both(first: Run, second: Run) -> Run:
        return lambda *x: (first(*x[:10]), second(*x[10:]))  # ten inputs each

    return replace(
        chunk, op="mixed_launches", make_inputs=make,
        shape={
            "num_tokens": num_tokens, "context_tokens": context_tokens, "num_decodes": num_decodes,
            "decode_kv_tokens": decode_kv_tokens, "num_q_heads": 32, "num_kv_heads": 8,
        },
        flops=chunk.flops + decode.flops, bytes=chunk.bytes + decode.bytes,
        reference=both(chunk.reference, decode.reference),
        providers={p: both(chunk.providers[p], decode.providers[p]) for p in ("headway", "flash")},
    )  # fmt: skip


def layer_trials(
    device: Any, l2_bytes: int, *, model: str, phase: str, num_tokens: int, context_tokens: int
) -> Iterator[Trial | Rejected]:
    """Each op alone, then the layer with each output fed to the next op: a row "sum" follows.

    Weights and KV are cold; what an op of a layer reads of its predecessor is not, so those whose
    inputs are all activations are timed warm. The layer also pays a copy of the rotated queries.
    """
    parts = layer_parts(model, phase, num_tokens, context_tokens)
    cases = [build(name, arguments)[0] for _, name, arguments in parts]
    for (part, name, _), case in zip(parts, cases, strict=True):
        warm = name in ("norm", "rope", "gated") and case.bytes < l2_bytes // 2
        ours = replace(case, providers={"headway": case.providers["headway"]})
        for trial in trials(ours, device, l2_bytes, config_label(name, case, device)):
            if isinstance(trial, Rejected):
                yield Rejected(part, trial.reason)
            else:
                yield replace(trial, kernel=part, weight=1, l2="warm" if warm else "")
    sets = [[make_inputs(case, device, i) for case in cases] for i in range(2)]
    runs = [case.providers["headway"] for case in cases]
    calls = [partial(_chain, [part for part, _, _ in parts], runs, inputs) for inputs in sets]
    if bool(calls[0]().isfinite().all()):
        yield Trial(kernel="layer", calls=calls)
    else:
        yield Rejected("layer", "its output is not finite")


def _chain(names: list[str], runs: list[Run], inputs: list[tuple[Any, ...]]) -> Any:
    x: Any = None
    for name, run, own in zip(names, runs, inputs, strict=True):
        first = own[0] if x is None else x.reshape(own[0].shape).contiguous()
        found = run(first, *own[1:])
        if name != "router":  # whose choice the inputs of the experts already hold
            x = found[0] if isinstance(found, tuple) else found
    return x


def _every_config(name: str, arguments: Mapping[str, Any]) -> Case:
    """A case whose providers are our kernel's tile configurations."""
    case, _, _ = build(name, arguments)
    configs = kernels("configs")
    chip = configs.capability(torch_module().device("cuda"))
    if name == "dense":
        gemm, small = kernels("gemm").gemm, arguments["m"] <= 64
        more = [configs.Config(**tiles) for tiles in (TUNE_SMALL_M if small else TUNE_LARGE_M)]
        known = [c for c in configs.configurations("gemm", chip) if (c.BLOCK_M <= 64) == small]
        return replace(case, providers={
            c.label: lambda a, b, arrivals, c=c: gemm(a, b, arrivals=arrivals, config=c)
            for c in dict.fromkeys([*known, *more])
        })  # fmt: skip
    op = "paged_attention" if name == "decode" else "prefill_attention"
    rows = dict.fromkeys(c for _, c in kernels("attention_configs").table_rows(op, chip))
    attend = getattr(kernels(op), op)

    def run(*x: Any, config: Any) -> Any:
        if name == "decode":
            return attend(*x[:5], config=config)
        most = arguments["num_tokens"]
        return attend(*x[:5], block_table=x[5], max_chunk_tokens=most, config=config)

    return replace(case, providers={c.label: partial(run, config=c) for c in rows})
