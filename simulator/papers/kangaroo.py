"""Kangaroo: the target's own first layers draft, and stop where they are not sure."""

from __future__ import annotations

from simulator.costs.compiled import TICKS_PER_S
from simulator.drafting import speculation_kind
from simulator.papers.case import Case, Changes, Line, Measure, Picture
from simulator.papers.drafting_speed import speed_up
from simulator.speculation.lengths import expected_tokens

FORMULA_COST = 0.085  # of a draft step, in forward passes: 2 of 32 layers, and the adapter
FIXED = (1, 2, 3, 4, 5, 6)


def formula(rate: float, length: int) -> float:
    """Speed-up of the paper's model: expected tokens over draft steps and one forward pass."""
    return expected_tokens(rate, length) / (length * FORMULA_COST + 1.0)


def step_cost(case: Case) -> float:
    """A draft step of one sequence in our prices, in forward passes of the target."""
    experiment = case.experiment()
    group = experiment.cluster.groups[0]
    cost, _, kind = speculation_kind(experiment, group)
    draft, context = kind.draft, 512
    fixed = [draft.steps([1] * passes) for passes in (3, 4)]
    step = fixed[1][0] - fixed[0][0] + (fixed[1][1] - fixed[0][1]) * context
    stage = cost.stages[0]
    attention = stage.attention[0]
    rest = stage.linear[1] + cost.logits[1] + cost.host[1]
    rest += attention.decode_base[1] + attention.decode_per_token[1] * context
    shallow, slope = draft.steps([1])
    return step / (rest + draft.computes(1) + shallow + slope * context)


def with_threshold(threshold: float, length: int = 6) -> Changes:
    return {
        "speculation.drafter.threshold": threshold,
        "speculation.num_speculative_tokens": length,
    }


def dynamic(case: Case, num_seqs: int = 1) -> float:
    """Speed-up with both exits early."""
    requests = case.choose(60, 20) * (1 if num_seqs == 1 else 8)
    return speed_up(case, with_threshold(0.6), num_seqs, requests)


def against_fixed(case: Case) -> float:
    """The second early exit over the best fixed number of drafts."""
    requests = case.choose(60, 20)
    fixed = [speed_up(case, with_threshold(0.0, length), 1, requests) for length in FIXED]
    return dynamic(case) / max(fixed)


def head_s(case: Case) -> float:
    """Milliseconds of the LM head on one row: every draft step needs it."""
    experiment = case.experiment()
    _, _, kind = speculation_kind(experiment, experiment.cluster.groups[0])
    return 1e3 * kind.draft.logits[1] / TICKS_PER_S


MEASURES: dict[str, Measure] = {
    "formula_06": lambda case: formula(0.6, 4),
    "formula_07": lambda case: formula(0.7, 4),
    "step_cost": step_cost,
    "speed_up": dynamic,
    "against_fixed": against_fixed,
    "batch_32": lambda case: dynamic(case, 32),
    "head_ms": head_s,
}


def picture(case: Case) -> Picture:
    """Speed-up over the number of drafts, fixed and with the second exit."""
    lengths = tuple(float(length) for length in FIXED)
    lines = []
    for name, threshold in (("fixed", 0.0), ("stops below 0.6", 0.6)):
        requests = case.choose(60, 20)
        found = (speed_up(case, with_threshold(threshold, k), 1, requests) for k in FIXED)
        lines.append(Line(label=name, x=lengths, y=tuple(found)))
    return Picture(
        title="Kangaroo on Vicuna-7B, one sequence",
        x_label="most drafted tokens",
        y_label="speed-up",
        lines=tuple(lines),
    )
