"""The keys of an experiment file: what each means, its type and its bounds.

Policies (scheduler, router, workload) are not listed here: their keys are the fields of the
dataclass their `kind` names, see `simulator.config.policies`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from simulator.config.document import Document, shown
from simulator.config.fields import (
    MAX_INT,
    Bytes,
    Degree,
    Seconds,
    Share,
    clear_error,
    unknown_key,
)
from simulator.errors import ConfigError


def _policy(value: object) -> object:
    if isinstance(value, str | dict):
        return value
    raise ValueError(f"expected a kind, or a mapping with 'kind' (got {shown(value)})")


Policy = Annotated[Any, BeforeValidator(_policy)]
SCHEDULER, ROUTER, LENGTH = "vllm_v1", "round_robin", "fixed"  # kinds where none is stated
Tokens = Annotated[int, Field(ge=1, le=2**20)]


class Section(BaseModel):
    """A mapping of the file: exact types, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class PlanSection(Section):
    """How the GPUs are divided: every degree defaults to 1."""

    tp: Degree = Field(default=1, description="tensor-parallel degree", examples=[8])
    pp: Degree = Field(default=1, description="pipeline stages", examples=[2])
    dp: Degree = Field(default=1, description="replicas behind the router", examples=[4])
    ep: Degree = Field(
        default=1,
        description="GPUs the experts are spread over: 1, or tp x attention_dp",
        examples=[8],
    )
    attention_dp: Degree = Field(
        default=1, description="attention ranks of a stage that step together", examples=[8]
    )


class EngineSection(Section):
    """Settings of the serving engine; what is left out is vLLM's default for the GPU."""

    profile: str | None = Field(
        default=None,
        description="engine profile whose defaults and host times apply: a bundled one, or a "
        "YAML file such as `headway calibrate from-bench` writes",
        examples=["vllm-0.15"],
    )
    max_num_batched_tokens: Tokens | None = Field(
        default=None, description="token budget of one iteration", examples=[8192]
    )
    max_num_seqs: Tokens | None = Field(
        default=None, description="most sequences running at once in a lane", examples=[256]
    )
    gpu_memory_utilization: Share | None = Field(
        default=None, description="share of GPU memory the engine may use", examples=[0.92]
    )
    block_tokens: Annotated[int, Field(ge=1, le=2**16)] | None = Field(
        default=None, description="tokens of one KV block", examples=[16]
    )
    prefix_caching: bool | None = Field(
        default=None, description="reuse KV blocks of equal prefixes"
    )
    cuda_graphs: bool | None = Field(default=None, description="false = vLLM's --enforce-eager")
    max_model_len: Annotated[int, Field(ge=1, le=MAX_INT)] | None = Field(
        default=None,
        description="longest context served; default: the model's own",
        examples=[32768],
    )
    num_blocks: Annotated[int, Field(ge=1, le=2**40)] | None = Field(
        default=None,
        description="KV blocks of a rank; default: what memory allows",
        examples=[20000],
    )
    nano_batches: Annotated[int, Field(ge=2, le=64)] | None = Field(
        default=None,
        description="cut iterations into so many parts, whose GEMMs, decode attention and "
        "collectives overlap (NanoFlow)",
        examples=[2],
    )
    nano_overlap: Literal["all", "network", "none"] | None = Field(
        default=None, description="what runs beside the GEMMs of other nano-batches"
    )
    kv_offload: Bytes | None = Field(
        default=None,
        description="host memory behind the prefix cache, of one engine (all GPUs of an attention "
        "rank together), as vLLM's --kv-offloading-size; 0 GB = none",
        examples=["64 GB"],
    )
    host_overhead: dict[str, Any] | None = Field(
        default=None, description="overrides of the host-time profile of an iteration"
    )
    calibration: str | None = Field(
        default=None,
        description="folder of fitted kernel times; default: the embedded ones; "
        "roofline = datasheet peaks and shares of them alone",
        examples=["calibration/h200"],
    )
    extrapolate: bool | None = Field(
        default=None,
        description="use the folder's times more than twice beyond what was measured",
    )


def _acceptance(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"kind": "geometric", "rate": float(value)}
    return _policy(value)


class SpeculationSection(Section):
    """Speculative decoding: tokens are drafted, then verified in one iteration of the target."""

    drafter: Policy = Field(
        default=None, validate_default=False, description="who drafts: a kind, or a mapping"
    )
    num_speculative_tokens: Annotated[int, Field(ge=1, le=64)] = Field(
        default=4, description="longest draft, or depth of a tree", examples=[4]
    )
    acceptance: Annotated[Any, BeforeValidator(_acceptance)] = Field(
        default=None,
        validate_default=False,
        description="chance that a drafted token is accepted, or a mapping with `kind`",
        examples=[0.7],
    )
    length: Policy = Field(default=LENGTH, description="how far to draft before an iteration")


class SloSection(Section):
    """Latency targets; a request is good when it meets every one that is set."""

    ttft: Seconds | None = Field(default=None, description="time to first token", examples=["1 s"])
    tpot: Seconds | None = Field(
        default=None, description="time per output token after the first", examples=["50 ms"]
    )
    e2e: Seconds | None = Field(default=None, description="end to end", examples=["30 s"])
    attainment: Share = Field(
        default=0.99, description="share of requests that must meet every target", examples=[0.99]
    )


class ExperimentFile(Section):
    """One experiment: a model on a cluster under a plan, serving a workload."""

    name: str = Field(default="experiment", description="shown in reports", examples=["quickstart"])
    seed: Annotated[int, Field(ge=0, le=MAX_INT)] = Field(
        default=0, description="one seed for every random draw"
    )
    model: str = Field(
        description="bundled model, or path of a Hugging Face config.json",
        examples=["llama-3.1-8b", "models/my-model/config.json"],
    )
    weight_format: str = Field(
        default="",
        description="format of the linear layers; default: the model's own",
        examples=["fp8"],
    )
    kv_format: str = Field(
        default="", description="format of the KV cache; default: the model's own", examples=["fp8"]
    )
    cluster: str = Field(description="GPUs, as COUNTxNAME", examples=["8xH100-SXM"])
    plan: PlanSection | None = Field(default=None, description="read by `headway simulate`")
    engine: EngineSection = Field(
        default=EngineSection(), description="settings of the serving engine"
    )
    scheduler: Policy = Field(default=SCHEDULER, description="what an iteration computes")
    allocator: Policy | None = Field(
        default=None, description="who holds KV pages; default: paged, with a prefix cache"
    )
    router: Policy = Field(default=ROUTER, description="which replica serves a request")
    workload: Policy = Field(description="a bundled workload, or a mapping with `kind`")
    speculation: SpeculationSection | None = Field(
        default=None, description="speculative decoding; none where left out"
    )
    slo: SloSection = Field(default=SloSection(), description="latency targets")
    horizon: Seconds | None = Field(
        default=None, description="simulated time after which the run is cut", examples=["600 s"]
    )
    coalesce: bool = Field(
        default=True, description="false = one iteration at a time: same request times, slower"
    )
    search: dict[str, Any] | None = Field(default=None, description="read by `headway search`")


class MachineFile(ExperimentFile):
    """An experiment file read for its machine alone: the workload may be missing."""

    workload: Policy = Field(default="none", description="not read")


AnySection = TypeVar("AnySection", bound=Section)

# What a message about a missing key adds, as the flag is the other way to give it.
_ALSO_BY_FLAG = {"model": "--model", "cluster": "--cluster", "workload": "--trace"}


def validate(section: type[AnySection], data: object, document: Document, key: str) -> AnySection:
    """`data` as a section; `key` is where it stands in the document, "" = the whole of it.

    Raises:
        ConfigError: the first thing wrong, with file or flag, dotted key, expectation and value.
    """
    try:
        return section.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        for problem in problems:
            if problem["type"] == "extra_forbidden":
                *parents, leaf = (str(part) for part in problem["loc"])
                known = _keys_at(section, parents)
                raise unknown_key(document, _dotted(key, parents), leaf, known) from None
        first = problems[0]
        flag = _ALSO_BY_FLAG.get(str(first["loc"][0]), "") if first["type"] == "missing" else ""
        if flag and not key:
            name = first["loc"][0]
            text = f"{name}: this key is required (or the flag {flag})"
            raise ConfigError(f"{document.source}: {text}" if document.source else text) from None
        raise clear_error(error, document, key) from None


def _dotted(key: str, parents: list[str]) -> str:
    return ".".join([key, *parents] if key else parents)


def _keys_at(section: type[BaseModel], parents: list[str]) -> list[str]:
    for name in parents:
        for candidate in (PlanSection, EngineSection, SloSection, SpeculationSection):
            if name == candidate.__name__.removesuffix("Section").lower():
                section = candidate
    return list(section.model_fields)
