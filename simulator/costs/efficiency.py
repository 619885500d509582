"""What share of a GPU's peaks real kernels reach, and the fixed time each costs.

Every value names its source. Measured means the public H200/H100 tables of aiconfigurator 0.12
(vLLM 0.24 kernels, CUDA graphs); the values here reproduce their medians, they are not copies.
Other GPUs keep the measured *shares* and scale with their own peaks unless a note says otherwise:
that is an assumption, and `source` says so. `calibration` replaces these values by fitted ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from simulator.errors import unknown_name
from simulator.spec import EngineSettings, GpuSpec, NumberFormat
from simulator.work import Tokens

# Share of the memory bandwidth, and of the arithmetic peak, a GEMM reaches by weight format, as a
# factor of its bf16 share. fp8: measured, 0.52-0.65x of the bf16 time above 256 MiB of bf16
# weights. int4: "Give me BF16 or give me death?" (arXiv 2411.02355) tables 5-6: decode at 58 % of
# the 100 %-bandwidth bound on A100 and 43 % on H100, with some 8 ms a token of other work taken
# off; its compute loss is COMET's (ASPLOS'25) fall of W4A16 to 1.1-1.4x over bf16 at batch 64-256.
FORMAT_MEMORY: Mapping[str, float] = {
    "bf16": 1.0,
    "fp16": 1.0,
    "fp8": 0.91,
    "int8": 0.91,
    "mxfp4": 0.91,
}
FORMAT_COMPUTE: Mapping[str, float] = {
    "bf16": 1.0,
    "fp16": 1.0,
    "fp8": 0.85,
    "int8": 0.85,
    "int4_g128": 0.75,
    "mxfp4": 0.65,
}
WEIGHT_ONLY_COMPUTE = 0.85  # dequantisation inside a bf16 GEMM, where the GPU lacks the format


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Shares of peak (0..1) and fixed times of one GPU generation; defaults: H200, measured."""

    # GEMM: t = floor + ramp * W / (W + ramp_bytes) + p-norm(compute, memory). Floor 2.4 us and
    # 4.2 us from 1 MiB of weights up reproduce 565 / 1,560 / 2,800 / 3,560 / 3,970 / 4,080 GB/s at
    # 2.5 / 10 / 40 / 160 / 508 / 1,100 MiB within 8 %.
    gemm_floor_s: float = 2.4e-6
    gemm_ramp_s: float = 1.8e-6
    gemm_ramp_bytes: float = 0.5 * 2**20
    gemm_memory: float = 0.855
    gemm_compute: float = 0.825
    int4_memory: float = 0.66  # factor of gemm_memory for 4-bit weights widened in the kernel
    gemm_norm: float = 3.0  # exponent of the p-norm; measured ridge between m = 128 and 512
    # Compute share falls with m as clocks drop under load: 812 TFLOP/s at m = 1,024, 750 at 8,192.
    power_derate: float = 0.143
    power_tokens: float = 8192.0
    quantise_s: float = 2.1e-6  # activations to 8 bits: measured floor 4.5 us (fp8) - 2.4 (bf16)
    # Grouped GEMM of experts: fused Triton kernel with padded tiles; aiconfigurator's MoE tables
    # fit two efficiencies only to 25-34 %, so these are the roughest values here.
    expert_floor_s: float = 6.0e-6
    expert_memory: float = 0.93  # factor of gemm_memory; assumption
    expert_compute: float = 0.55
    expert_tile: float = 32.0  # rows wasted a hit expert: half a 64-row tile
    # Decode attention: t = base + wave * ceil-free waves + seq * B + bytes / (e BW) (1 + P0 / P).
    # FlashAttention-3 fit of 6,770 measured points: 7.4 % MAPE; seq from 442 us at B = 2,048.
    decode_base_s: float = 11.2e-6
    decode_wave_s: float = 3.1e-6
    decode_seq_s: float = 0.023e-6
    decode_memory: float = 0.91
    decode_pages: float = 38.0  # P0, in KV heads x 128-token tiles
    # A quantised KV cache saves memory, not time: fp8 takes 0.96x of the bf16 time (0.72-1.03).
    decode_quantised: float = 0.95
    # Prefill attention: t = base + pairs / rate + tokens * (wasted pairs a token) / rate,
    # fitted to 244 / 514 / 586 / 652 TFLOP/s at 1k / 4k / 8k / 16k (H32, KV8, causal): 13 % at 1k,
    # 3 % above.
    prefill_base_s: float = 9.8e-6
    prefill_compute: float = 0.723
    prefill_token_pairs: float = 764.0
    softcap: float = 1.15  # tanh of each score; assumption
    # FlashMLA's published H800 figures: 660 TFLOP/s and 3,000 GB/s in its two bounds.
    mla_compute: float = 0.66
    mla_memory: float = 0.89
    elementwise_memory: float = 0.80  # aiconfigurator
    # Largest share of the arithmetic peak a GEMM keeps up under load, by compute format: short
    # measurements reach more than the power limit lets a server sustain. Fitted on the TTFT of
    # measured runs with long prompts: bf16 on llm-d's H100 runs of Llama-3.1-8B (A100 runs show
    # no such limit), fp8 on InferenceX's H200 runs of Llama-3.3-70B.
    sustained: Mapping[str, float] = field(default_factory=dict)
    source: str = "H200: aiconfigurator 0.12 tables (vLLM 0.24), medians"


HOPPER = Efficiency(sustained={"bf16": 0.68, "fp8": 0.57})
GENERATIONS: Mapping[str, Efficiency] = {
    "hopper": HOPPER,
    "blackwell": replace(
        HOPPER,
        gemm_compute=0.75,
        prefill_compute=0.62,
        decode_quantised=0.60,
        source="B200: H200 shares, lower compute share as power-limited; assumption",
    ),
    "ampere": replace(
        HOPPER,
        sustained={"bf16": 0.78},
        gemm_compute=0.80,
        int4_memory=0.85,
        prefill_compute=0.66,
        power_derate=0.0,
        source="A100: H200 shares; FlashAttention-2 paper (arXiv 2307.08691), 200-225 TFLOP/s",
    ),
    "ada": replace(
        HOPPER,
        gemm_compute=0.62,
        int4_memory=0.85,
        prefill_compute=0.55,
        expert_compute=0.45,
        source="L40S: inference-sim MFU hint 0.32 against 0.45 on H100; other shares of H200",
    ),
    "cdna": replace(
        HOPPER,
        gemm_memory=0.75,
        gemm_compute=0.55,
        prefill_compute=0.40,
        decode_memory=0.75,
        expert_compute=0.35,
        source="MI300X: assumption, public hipBLASLt results near 0.5-0.6 of peak",
    ),
    "other": replace(
        HOPPER, gemm_compute=0.65, prefill_compute=0.50, source="shares of H200; assumption"
    ),
}


def efficiency_of(gpu: GpuSpec) -> Efficiency:
    """Shares of this GPU's generation.

    H100's narrower memory is easier to fill: weight streaming is measured 1.346x slower than
    H200's where the bandwidth ratio is 1.433.
    """
    family = gpu.family.lower()
    name = next((key for key in GENERATIONS if family.startswith(key)), "other")
    found = GENERATIONS[name]
    if name == "hopper" and gpu.memory_bytes_per_s < 4e12:
        return replace(found, gemm_memory=0.91, source="H100: aiconfigurator 0.12, 1.346x of H200")
    return found


def weight_only(gpu: GpuSpec, number_format: NumberFormat) -> bool:
    """True where a quantised weight is widened to bf16 inside the GEMM."""
    if number_format.bits >= 16:
        return False
    return number_format.compute == "bf16" or number_format.compute not in gpu.flops_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProfile:
    """Host time of an engine; each field is a key of `EngineSettings.host_overhead`."""

    # Scheduling and sampling overlap the previous iteration in vLLM since 0.14 (asynchronous
    # scheduling); input preparation and graph launch do not. Vidur's tables (A100, vLLM 0.2 era)
    # had 0.2-0.5 ms scheduling + 0.8-0.9 ms inputs + 0.6 ms sampler; vLLM 0.6.0 left 5-6 ms
    # unexplained. Default: what remains of the inputs' share.
    iteration_s: float = 0.2e-3
    seq_s: float = 1.5e-6
    # One kernel launched outside a CUDA graph: vLLM's compiled code between attention calls, and
    # plain module code (an eager all-reduce is measured at 21 us against 4.7 in a graph).
    compiled_launch_s: float = 6e-6
    eager_launch_s: float = 21e-6
    # Before the scheduler sees a request and after its tokens leave the engine: HTTP, tokenising,
    # detokenising, streaming. Engine profiles state them; both are of the engine's process, so
    # where in a request's life they fall changes nothing but the moment it is seen.
    request_s: float = 0.0
    prompt_token_s: float = 0.0
    # Extra tokens on the hottest expert-parallel GPU beyond chance. Measured: a power law of 1.2
    # costs 1.01x (median) to 1.29x (p90) over balanced experts.
    expert_skew: float = 0.10
    # Exponent of the power law of how often experts are chosen: what trained routers do on real
    # text, so that a small batch reads fewer experts than chance. Engine profiles state it.
    expert_popularity: float = 0.0
    # Compiling the experts' Triton kernels when a size of batch is first met after a cold start.
    cold_expert_s: float = 0.0
    # Kernel times of this engine over those of the tables (vLLM 0.24), for few tokens and for many.
    decode_kernels: float = 1.0
    prefill_kernels: float = 1.0
    # The same for experts in mxfp4 alone, at 4,096 tokens and more; 1 up to 256.
    mxfp4_prefill: float = 1.0
    # Share of the arithmetic peak that lasts, in place of the generation's (see `sustained`).
    sustained_bf16: float = 0.0
    sustained_fp8: float = 0.0
    # Memory traffic a logit of top-k and top-p: a sort with indices, its sums and masks. Fitted on
    # measured runs of vLLM 0.15 whose clients leave sampling to the model.
    sort_logit_bytes: float = 220.0
    # Share of a decode batch's longest context that decides its attention (see costs.attention).
    decode_spread: float = 0.0


def kernel_factor(host: HostProfile, tokens: Tokens) -> Tokens | float:
    """`decode_kernels` up to 256 tokens, `prefill_kernels` from 1,024 on, by log between."""
    few, many = host.decode_kernels, host.prefill_kernels
    if few == many == 1.0:
        return 1.0
    share = np.clip(np.log2(np.maximum(tokens, 1.0) / 256.0) / 2.0, 0.0, 1.0)
    factor: Tokens = few + (many - few) * share
    return factor


def mxfp4_factor(host: HostProfile, tokens: Tokens) -> Tokens:
    """`mxfp4_prefill` from 4,096 tokens on, 1 up to 256, by log between."""
    share = np.clip(np.log2(np.maximum(tokens, 1.0) / 256.0) / 4.0, 0.0, 1.0)
    factor: Tokens = 1.0 + (host.mxfp4_prefill - 1.0) * share
    return factor


def host_profile(settings: EngineSettings) -> HostProfile:
    """Defaults with the overrides of `settings.host_overhead`.

    Raises:
        ConfigError: an override that is not a field of HostProfile.
    """
    fields = HostProfile.__dataclass_fields__
    for name in settings.host_overhead:
        if name not in fields:
            raise unknown_name("host_overhead", name, fields)
    return HostProfile(**settings.host_overhead)
