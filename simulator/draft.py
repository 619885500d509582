"""What drafts tokens for speculation, as data: what runs a step, what it shares, what it stores."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.errors import InfeasiblePlan
from simulator.placement import check_model
from simulator.spec import ModelSpec, ParallelPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftSpec:
    """A drafter on a replica's GPUs: layers run once a draft step, and host time.

    What is not owned is the target's own: it is read when it runs, and takes no memory.
    """

    model: ModelSpec | None = None  # layers and LM head of one step; None = nothing on the GPU
    tp: int = 0  # of `model`; 0 = the target's, or 1 where that does not divide it
    owns_layers: bool = True
    owns_vocabulary: bool = True  # embedding and LM head
    extra_gemms: tuple[tuple[int, int], ...] = ()  # (in, out) sizes beyond the model's, a step
    extra_attention: int = 0  # attention layers beyond the model's, of its last kind
    width: int = 1  # tokens of a sequence in every step but the first
    passes_beyond: int = 0  # steps after the last draft: it passes the first layers too
    skipped_layers: int = 0  # first layers of the target, done with when verification starts
    host_s: float = 0.0  # of one proposal for the whole batch
    host_seq_s: float = 0.0  # and for each sequence in it


def split_draft(spec: DraftSpec, plan: ParallelPlan) -> ParallelPlan:
    """How the draft model lies on the target's GPUs: its tp, or whole on each of them.

    Raises:
        InfeasiblePlan: the degree asked for is not 1 or the target's, or does not divide it.
    """
    assert spec.model is not None
    if spec.tp not in (0, 1, plan.tp):
        raise InfeasiblePlan(
            f"draft model {spec.model.name}: tensor_parallel {spec.tp} is neither 1 nor the "
            f"target's tp={plan.tp}"
        )
    split = ParallelPlan(tp=spec.tp or plan.tp)
    try:
        check_model(spec.model, split)
    except InfeasiblePlan:
        if spec.tp:
            raise
        split = ParallelPlan()
    return split
