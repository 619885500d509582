"""What is simulated: the model, the hardware and the parallel plan, as frozen data.

A model is an ordered list of references to a few distinct layer kinds, so that every cost scales
with the number of kinds, never with depth. Nothing here reads files: `simulator.catalog` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from simulator.errors import ConfigError, InfeasiblePlan, unknown_name


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFormat:
    """Storage of weights or KV, and the arithmetic a GEMM on it runs in."""

    name: str
    bits: float  # per value, scales and zero points included
    compute: str  # key of GpuSpec.flops_per_s used where the GPU has it
    fallback_compute: str = "bf16"  # weight-only kernels on GPUs without `compute`


# int4_g128: 4 + (16-bit scale + 4-bit zero) / 128. mxfp4: 4 + 8-bit scale / 32.
WEIGHT_FORMATS: dict[str, NumberFormat] = {
    f.name: f
    for f in (
        NumberFormat(name="bf16", bits=16, compute="bf16"),
        NumberFormat(name="fp16", bits=16, compute="bf16"),
        NumberFormat(name="fp8", bits=8, compute="fp8"),
        NumberFormat(name="int8", bits=8, compute="int8"),
        NumberFormat(name="int4_g128", bits=4 + 20 / 128, compute="bf16"),
        NumberFormat(name="mxfp4", bits=4 + 8 / 32, compute="fp4"),
    )
}
KV_FORMATS: dict[str, NumberFormat] = {
    f.name: f
    for f in (
        NumberFormat(name="bf16", bits=16, compute="bf16"),
        NumberFormat(name="fp16", bits=16, compute="bf16"),
        NumberFormat(name="fp8", bits=8, compute="fp8"),
        NumberFormat(name="int8", bits=8, compute="int8"),
        NumberFormat(name="int4", bits=4, compute="bf16"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MlaSpec:
    """Multi-head latent attention (DeepSeek-V2/V3): one latent vector per token is cached."""

    q_lora_rank: int  # 0 = queries are projected directly
    kv_lora_rank: int
    nope_head_dim: int
    rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Attention of one layer kind."""

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    window: int = 0  # tokens a query sees, itself included; 0 = the whole context
    softcap: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False  # one learned logit per head (gpt-oss)
    mla: MlaSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FfnSpec:
    """Feed-forward block; MoE when num_experts > 0."""

    ffn_size: int  # of one expert where num_experts > 0
    gated: bool = True
    bias: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    shared_ffn_size: int = 0  # width of the always-on experts, summed
    shared_gate: bool = False  # a learned scalar gate on the shared experts (Qwen2-MoE)
    router_bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One layer kind."""

    attention: AttentionSpec
    ffn: FfnSpec
    num_norms: int = 2
    norm_bias: bool = False  # LayerNorm (weight and bias) instead of RMSNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer, as much of it as its cost depends on."""

    name: str
    architecture: str  # of the Hugging Face config
    hidden_size: int
    vocab_size: int
    layer_kinds: tuple[LayerSpec, ...]
    layer_order: tuple[int, ...]  # index into layer_kinds, first layer first
    tied_embeddings: bool
    max_context_tokens: int
    num_learned_positions: int = 0
    embedding_size: int = 0  # width of the embedding where it differs from hidden_size; 0 = same
    final_norm_bias: bool = False
    lm_head_bias: bool = False
    weight_format: str = "bf16"  # of the linear layers; embeddings, norms, LM head stay 16-bit
    expert_format: str = ""  # of routed experts; "" = weight_format
    kv_format: str = "bf16"

    @property
    def num_layers(self) -> int:
        return len(self.layer_order)

    @property
    def expert_weight_format(self) -> str:
        return self.expert_format or self.weight_format

    def kind_counts(self, first: int = 0, last: int | None = None) -> dict[int, int]:
        """Number of layers of each kind among layers [first, last), by kind index."""
        return dict(sorted(Counter(self.layer_order[first:last]).items()))

    def with_formats(self, weight_format: str = "", kv_format: str = "") -> ModelSpec:
        """The same model stored in other formats; "" keeps what it has."""
        if weight_format and weight_format not in WEIGHT_FORMATS:
            raise unknown_name("weight format", weight_format, WEIGHT_FORMATS)
        if kv_format and kv_format not in KV_FORMATS:
            raise unknown_name("KV format", kv_format, KV_FORMATS)
        changes: dict[str, str] = {}
        if weight_format:
            changes |= {"weight_format": weight_format, "expert_format": ""}
        if kv_format:
            changes["kv_format"] = kv_format
        return replace(self, **changes) if changes else self  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """A network link of one GPU."""

    name: str
    bytes_per_s: float  # per GPU, one direction
    latency_s: float  # one message, software included


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """One accelerator: dense datasheet peaks, and the link inside its node."""

    name: str
    memory_bytes: float  # as the device reports it
    memory_bytes_per_s: float
    flops_per_s: Mapping[str, float]  # by compute format: bf16, fp8, int8, fp4
    num_sms: int
    l2_bytes: float
    tdp_w: float
    idle_w: float
    price_per_hour: float  # US dollars, on demand
    price_date: str
    gpu_link: LinkSpec  # NVLink, xGMI, or PCIe where there is nothing better
    host_link: LinkSpec  # PCIe to the host
    gpus_per_node: int
    inter_node: LinkSpec
    family: str = ""  # generation, such as "hopper"
    source: str = ""
    launch_s: float = 2.5e-6  # one kernel inside a CUDA graph

    def compute_flops_per_s(self, number_format: NumberFormat) -> float:
        """Peak of the arithmetic a format runs in on this GPU (weight-only where it lacks it)."""
        rate = self.flops_per_s.get(number_format.compute)
        return rate if rate is not None else self.flops_per_s[number_format.fallback_compute]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """Identical nodes of a cluster."""

    num_nodes: int
    gpus_per_node: int
    gpu: GpuSpec

    @property
    def num_gpus(self) -> int:
        return self.num_nodes * self.gpus_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """Groups of nodes; a replica never spans two groups."""

    name: str
    groups: tuple[NodeGroup, ...]

    @property
    def num_gpus(self) -> int:
        return sum(group.num_gpus for group in self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelPlan:
    """How many GPUs serve one replica, and how many replicas there are.

    One replica is `pp` pipeline stages; each stage is `attention_dp` attention ranks of `tp` GPUs
    that step together. Experts are spread whole over `ep` GPUs, or sliced over tp * attention_dp
    GPUs where ep = 1. `dp` replicas stand behind a router.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    attention_dp: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "dp", "ep", "attention_dp"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"plan.{name}: expected an int >= 1 (got {value!r})")
        if self.ep not in (1, self.tp * self.attention_dp):
            raise InfeasiblePlan(
                f"ep={self.ep}: experts spread over all tp x attention_dp = "
                f"{self.tp * self.attention_dp} GPUs of a stage, or ep = 1"
            )

    @property
    def gpus_per_stage(self) -> int:
        return self.tp * self.attention_dp

    @property
    def gpus_per_replica(self) -> int:
        return self.gpus_per_stage * self.pp

    @property
    def num_gpus(self) -> int:
        return self.gpus_per_replica * self.dp

    def __str__(self) -> str:
        parts = [f"tp{self.tp}"]
        parts += [f"pp{self.pp}"] if self.pp > 1 else []
        parts += [f"adp{self.attention_dp}"] if self.attention_dp > 1 else []
        parts += [f"ep{self.ep}"] if self.ep > 1 else []
        parts += [f"dp{self.dp}"] if self.dp > 1 else []
        return "-".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Latency targets of a request; infinity = no target."""

    ttft_s: float = float("inf")
    tpot_s: float = float("inf")
    e2e_s: float = float("inf")
    attainment: float = 0.99  # share of requests that must meet every target

    @property
    def is_set(self) -> bool:
        return min(self.ttft_s, self.tpot_s, self.e2e_s) < float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceDraw:
    """One draw of the errors of kernel prices; see `simulator.costs.error`."""

    seed: int
    number: int  # of the draw, from 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Settings of the engine that price and memory depend on (vLLM's names and defaults)."""

    profile: str = ""  # the engine profile whose defaults these are
    max_num_batched_tokens: int  # token budget of one iteration
    max_num_seqs: int
    gpu_memory_utilization: float = 0.92
    block_tokens: int = 16
    prefix_caching: bool = True
    cuda_graphs: bool = True
    max_model_len: int = 0  # 0 = the model's own context
    num_blocks: int = 0  # 0 = computed from memory
    host_overhead: Mapping[str, float] = field(default_factory=dict)  # fields of HostProfile
    truncated_sampling: bool = False  # requests sample with top-p or top-k: logits are sorted
    cold_start: bool = False  # the server meets its batch sizes for the first time
    async_scheduling: bool = False  # an iteration is planned when the one before it begins
    reserve_graphs: bool = True  # CUDA graphs are taken off before KV memory is counted
    largest_graph: int = 512  # tokens
    nano_batches: int = (
        0  # parts of an iteration whose unlike kernels overlap; 0 = one after another
    )
    nano_overlap: str = "all"  # what runs beside GEMMs; see `costs.overlap.OVERLAPS`
    calibration: str = ""  # folder of fitted curves; "" = embedded ones, "roofline" = none
    extrapolate: bool = False  # use the folder's curves far beyond what was measured
    kv_offload_bytes: float = 0.0  # of host memory an attention rank, over its GPUs; 0 = none
    draw: PriceDraw | None = None  # errors to price with; None = prices as they are
