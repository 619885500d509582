"""Every plan worth a name on a cluster, the impossible ones with their reason.

A plan is a replica shape (tp, pp, ep, attention_dp), a number of replicas, number formats, engine
settings and a router. Replicas never span two node groups: on a mixed cluster a plan runs on every
group its replica fits, and each group is also tried alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from simulator.defaults import default_settings
from simulator.errors import ConfigError, InfeasiblePlan
from simulator.memory import kv_capacity
from simulator.placement import check_plan, replicas_that_fit
from simulator.request import RequestTable
from simulator.routers import ROUTERS, RoundRobin, Router
from simulator.search.spec import SearchSpec
from simulator.spec import ClusterSpec, EngineSettings, ModelSpec, NodeGroup, ParallelPlan

SMALL_BUDGET, LARGE_BUDGET = 2048, 8192  # tokens an iteration: vLLM's defaults on most GPUs


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One plan with all its settings; `reason` says why it cannot run."""

    plan: ParallelPlan
    cluster: ClusterSpec  # only the groups it runs on
    model: ModelSpec
    settings: EngineSettings | None = None  # None where the settings themselves are impossible
    router: Router = field(default_factory=RoundRobin)
    variant: str = ""  # what differs from the engine's defaults and the model as stored
    is_variant: bool = False  # further settings or router of a plan that is listed before
    reason: str = ""
    note: str = ""  # groups left out, and why
    most_tokens: int = 0  # prompt and output of the longest request it can serve

    @property
    def label(self) -> str:
        return f"{self.plan} {self.variant}".rstrip()

    @property
    def base(self) -> tuple[str, ...]:
        """What a plan shares with its variants."""
        groups = [group_name(group) for group in self.cluster.groups]
        return (str(self.plan), self.model.weight_format, self.model.kv_format, *groups)

    @property
    def router_name(self) -> str:
        """As in YAML, or the class of a router from elsewhere."""
        names = {kind: name for name, kind in ROUTERS.items()}
        return names.get(type(self.router), type(self.router).__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Groups a plan may use together; `label` is empty for the whole cluster."""

    cluster: ClusterSpec
    label: str = ""


def candidates(spec: SearchSpec) -> list[Candidate]:
    """All plans of the search, in a fixed order."""
    found: dict[tuple[str, ...], Candidate] = {}
    for pool, (model, formats) in itertools.product(_pools(spec.cluster), _models(spec)):
        for shape in _shapes(spec, model, pool.cluster):
            for candidate in _with_variants(spec, pool, model, formats, shape):
                if pool.label and candidate.reason:
                    continue  # the whole cluster's entry says so already
                found.setdefault(_identity(candidate), candidate)
    listed = list(found.values())
    return listed if spec.prune is False else _refuse_misfits(listed, spec.workload)


def _identity(candidate: Candidate) -> tuple[str, ...]:
    """What makes two plans the same, however they came to be listed."""
    settings = str(candidate.settings) if candidate.settings else candidate.variant
    return (settings, str(candidate.router), *candidate.base)


def _refuse_misfits(listed: list[Candidate], table: RequestTable) -> list[Candidate]:
    """Refuse the plans that would reject requests which others can serve."""
    lengths = table.prompt_tokens + table.output_tokens
    misfits = [0 if c.reason else int((lengths > c.most_tokens).sum()) for c in listed]
    least = min((n for c, n in zip(listed, misfits, strict=True) if not c.reason), default=0)
    return [
        candidate
        if num <= least
        else replace(
            candidate,
            reason=f"KV memory ends at requests of {candidate.most_tokens:,} tokens: "
            f"{num:,} of the {len(table):,} are longer",
        )
        for candidate, num in zip(listed, misfits, strict=True)
    ]


def _pools(cluster: ClusterSpec) -> list[Pool]:
    pools = [Pool(cluster=cluster)]
    if len(cluster.groups) > 1:
        for group in cluster.groups:
            part = ClusterSpec(name=group_name(group), groups=(group,))
            pools.append(Pool(cluster=part, label=group_name(group)))
    return pools


def group_name(group: NodeGroup) -> str:
    return f"{group.num_nodes}x{group.gpus_per_node}x{group.gpu.name}"


def _models(spec: SearchSpec) -> Iterator[tuple[ModelSpec, str]]:
    """The model in each combination of formats, with what to call it."""
    for weight_format in spec.weight_formats or ("",):
        for kv_format in spec.kv_formats or ("",):
            model = spec.model.with_formats(weight_format, kv_format)
            names = [weight_format] if model.weight_format != spec.model.weight_format else []
            if model.kv_format != spec.model.kv_format:
                names.append(f"kv-{kv_format}")
            yield model, " ".join(names)


def _shapes(spec: SearchSpec, model: ModelSpec, cluster: ClusterSpec) -> Iterator[ParallelPlan]:
    """Replica shapes (dp = 1) by size, then pipeline depth."""
    num_gpus = max(group.num_gpus for group in cluster.groups)
    sizes = sorted({size for group in cluster.groups for size in _divisors(group.num_gpus)})
    is_moe = any(layer.ffn.num_experts for layer in model.layer_kinds)
    pps = spec.pp or sizes
    attention_dps = spec.attention_dp or (sizes if is_moe else (1,))
    triples = [
        (tp * pp * attention_dp, pp, attention_dp, tp)
        for tp in spec.tp or sizes
        for pp in pps
        for attention_dp in attention_dps
        # A stated degree that is too big by itself is listed once, with that reason.
        if tp * pp * attention_dp <= num_gpus or (pp, attention_dp) == (pps[0], attention_dps[0])
    ]
    for _, pp, attention_dp, tp in sorted(set(triples)):
        width = tp * attention_dp
        for ep in spec.ep or ({1, width} if is_moe else (1,)):
            if ep in (1, width):
                yield ParallelPlan(tp=tp, pp=pp, ep=ep, attention_dp=attention_dp)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _with_variants(
    spec: SearchSpec, pool: Pool, model: ModelSpec, formats: str, shape: ParallelPlan
) -> Iterator[Candidate]:
    """The shape with every number of replicas, engine setting and router."""
    base = Candidate(plan=shape, cluster=pool.cluster, model=model)
    where = f"@{pool.label}" if pool.label else ""
    limits = itertools.product(_budgets(spec, pool.cluster), spec.max_num_seqs or (0,))
    for number, (tokens, seqs) in enumerate(limits):
        names = [formats, f"{tokens}-tok" if tokens else "", f"{seqs}-seq" if seqs else ""]
        placed = _place(spec, base, tokens, seqs)
        for plan in _replica_counts(spec, placed):
            default, *others = spec.candidate_routers
            if placed.reason or plan.dp * plan.attention_dp == 1:
                others = []  # a router cannot change the reason, and needs a choice to make
            for router in (default, *others):
                routed = replace(placed, plan=plan, router=router)
                name = "" if router is default else routed.router_name.replace("_", "-")
                variant = " ".join(filter(None, [*names, name, where]))
                is_variant = number > 0 or router is not default
                routed = replace(routed, variant=variant, is_variant=is_variant)
                yield _filling(spec, routed)


def _budgets(spec: SearchSpec, cluster: ClusterSpec) -> list[int]:
    """Token budgets to try; 0 = the engine's default."""
    default = min(default_settings(g.gpu).max_num_batched_tokens for g in cluster.groups)
    if spec.max_num_batched_tokens:
        return [0 if x == default else x for x in dict.fromkeys(spec.max_num_batched_tokens)]
    if "max_num_batched_tokens" in spec.engine or not spec.scheduler_variants:
        return [0]
    return [0, SMALL_BUDGET if default > SMALL_BUDGET else LARGE_BUDGET]


def _place(spec: SearchSpec, base: Candidate, tokens: int, seqs: int) -> Candidate:
    """The candidate on the groups one replica fits, or with the reason it fits none.

    Replicas on different GPUs share one set of settings: the most careful defaults among them.
    """
    limits = {"max_num_batched_tokens": tokens, "max_num_seqs": seqs}
    stated = {**spec.engine, **{key: value for key, value in limits.items() if value}}
    fits: list[tuple[NodeGroup, EngineSettings]] = []
    reasons = {}
    for group in base.cluster.groups:
        try:
            settings = default_settings(group.gpu, **stated)
            check_plan(base.model, base.plan, group)
            kv_capacity(base.model, base.plan, group.gpu, settings)
        except (InfeasiblePlan, ConfigError) as error:
            reasons[group_name(group)] = str(error)
        else:
            fits.append((group, settings))
    if not fits:
        alone = len(base.cluster.groups) == 1
        texts = [text if alone else f"{name}: {text}" for name, text in reasons.items()]
        return replace(base, reason="; ".join(texts))
    settings = min((s for _, s in fits), key=lambda s: (s.max_num_batched_tokens, s.max_num_seqs))
    groups = tuple(group for group, _ in fits)
    return replace(
        base,
        cluster=replace(base.cluster, groups=groups),
        settings=settings,
        note="; ".join(f"leaves out {name}: {text}" for name, text in reasons.items()),
        most_tokens=_most_tokens(base, groups, settings),
    )


def _most_tokens(
    candidate: Candidate, groups: Iterable[NodeGroup], settings: EngineSettings
) -> int:
    """Prompt and output of the longest request that every replica could serve."""
    model, plan = candidate.model, candidate.plan
    held = min(kv_capacity(model, plan, group.gpu, settings).tokens for group in groups)
    limit = settings.max_model_len or model.max_context_tokens
    return min(held + 1, limit)  # the last token needs no KV


def _replica_counts(spec: SearchSpec, placed: Candidate) -> Iterator[ParallelPlan]:
    """The plan with each number of replicas to try; at least one, so that a reason is kept."""
    most = sum(replicas_that_fit(placed.plan, group) for group in placed.cluster.groups)
    counts = spec.dp or ((most,) if spec.fills_cluster else range(1, most + 1))
    if placed.reason and not spec.dp:
        most = sum(
            group.num_gpus // placed.plan.gpus_per_replica for group in placed.cluster.groups
        )
        counts = (max(1, most),)
    for dp in counts:
        yield replace(placed.plan, dp=dp)


def _filling(spec: SearchSpec, candidate: Candidate) -> Candidate:
    """The candidate, refused where it needs more GPUs than there are or leaves some idle."""
    if candidate.reason:
        return candidate
    plan, cluster = candidate.plan, candidate.cluster
    most = sum(replicas_that_fit(plan, group) for group in cluster.groups)
    if plan.dp > most:
        reason = f"dp={plan.dp} replicas of {plan.gpus_per_replica} GPUs: {most} fit the cluster"
        return replace(candidate, reason=reason)
    if spec.fills_cluster and plan.num_gpus < cluster.num_gpus:
        return replace(candidate, reason=f"uses {plan.num_gpus} of {cluster.num_gpus} GPUs")
    return candidate
