"""What an iteration that speculates costs: the drafter's passes, and attention of verification."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.costs.compiled import CompiledCost, StageCost
from simulator.costs.drafting import DraftCost, compile_draft, compile_verification
from simulator.draft import DraftSpec
from simulator.errors import InfeasiblePlan
from simulator.experiment import Experiment
from simulator.ragged import CONTEXT, RaggedSet
from simulator.spec import NodeGroup
from simulator.speculation import Speculation

Ints = NDArray[np.int64]
Lengths = int | Ints  # tokens drafted for every sequence alike, or for each


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationKind:
    """What a replica's lanes need to speculate: policies, prices of drafts and verification."""

    policy: Speculation
    draft: DraftCost
    pair_ticks: tuple[int, ...]  # a query-key pair of verification, by window of the target
    shares_layers: bool  # drafts leave the first layers' states behind: only new tokens pass them
    lengths: Ints  # [requests] output tokens: outcomes are drawn ahead
    seed: int = 0


def speculation_kind(
    experiment: Experiment, group: NodeGroup
) -> tuple[CompiledCost, DraftSpec, SpeculationKind]:
    """Prices of the target when it verifies, the drafter, and what the lanes need.

    Raises:
        InfeasiblePlan: a pipeline, or a draft model that cannot be split as asked.
    """
    policy = experiment.speculation
    assert policy is not None
    model, plan, settings = experiment.model, experiment.plan, experiment.settings
    if plan.pp > 1:
        raise InfeasiblePlan(
            f"speculation with the {policy.drafter.kind} drafter runs on one pipeline stage "
            f"(got pp={plan.pp})"
        )
    draft, queries = policy.drafter.draft(model), policy.most_queries()
    cost, pairs = compile_verification(draft, model, plan, group, settings, queries)
    kind = SpeculationKind(
        policy=policy,
        draft=compile_draft(draft, model, plan, group, settings, queries),
        pair_ticks=pairs,
        shares_layers=not draft.owns_layers,
        lengths=experiment.workload.output_tokens,
        seed=experiment.seed,
    )
    return cost, draft, kind


class DraftPrices:
    """Prices of one lane's drafts and verifications, in ticks."""

    __slots__ = ("_cost", "_is_chain", "_kind", "_ragged", "_steps", "_verified", "_verified_each")

    def __init__(self, kind: SpeculationKind, cost: CompiledCost, ragged: RaggedSet) -> None:
        policy = kind.policy
        self._kind = kind
        self._cost = cost
        self._ragged = ragged
        self._verified = [
            policy.drafter.verified(k) for k in range(policy.num_speculative_tokens + 1)
        ]
        self._verified_each = np.array(self._verified)
        self._is_chain = self._verified == list(range(len(self._verified)))
        self._steps: dict[tuple[int, int], tuple[int, int]] = {}  # of drafts of one length

    @property
    def most_verified(self) -> int:
        """Most tokens of one sequence that are verified beside its next."""
        return self._verified[-1]

    def verified(self, lengths: Lengths) -> Lengths:
        """Tokens verified for such drafts, beside one a sequence."""
        if isinstance(lengths, int):
            return self._verified[lengths]
        return lengths if self._is_chain else self._verified_each[lengths]

    def verification(self, stage: StageCost, verified: Lengths, drafts: int) -> int:
        """Attention of the query tokens: contexts are read once, or computed on if longer."""
        ragged = self._ragged
        num, kv_tokens, price = ragged.num_seqs, ragged.kv_tokens, 0
        for cost, pair_ticks in zip(stage.attention, self._kind.pair_ticks, strict=True):
            if cost.window:
                tokens = ragged.window_tokens(cost.window)
                pairs = ragged.window_tokens(cost.window, 1 + verified)
            elif isinstance(verified, int):
                tokens, pairs = kv_tokens, kv_tokens * (1 + verified)
            else:
                tokens = kv_tokens
                pairs = kv_tokens + int(ragged.state[CONTEXT, :num] @ verified)
            read = cost.decode_per_token[num] * (tokens + drafts)
            if cost.decode_spread:
                longest = int(ragged.state[CONTEXT, :num].max())
                read += cost.decode_spread[num] * (num * longest - kv_tokens)
            price += cost.decode_base[num] + max(read, pair_ticks * pairs)
        return price

    def proposal(self, lengths: Lengths, asked: int) -> int:
        """Passes of the drafter, the first one's token-wise ops excepted."""
        draft, num = self._kind.draft, self._ragged.num_seqs
        if isinstance(lengths, int):
            steps = self._steps.get((num, lengths))
            if steps is None:
                steps = draft.steps([num] * (lengths + draft.passes_beyond))
                self._steps[num, lengths] = steps
        else:
            at_least = np.bincount(lengths, minlength=asked + 1)[::-1].cumsum()[::-1]
            passes = at_least[0 if draft.passes_beyond else 1 :].tolist()
            steps = draft.steps([count for count in passes if count])
        fixed, slope = steps
        host = draft.host[num] if asked else 0
        return host + fixed + slope * (self._ragged.kv_tokens // num)

    def iteration(self, length: int, gained: int) -> int:
        """The coming iteration without prompts, were every sequence to draft so many tokens.

        Prompts are left out because they are the same work whatever is drafted: as an overhead of
        every iteration they would make long drafts look cheap. `gained`: tokens of the last
        iteration, which the drafter computes first.
        """
        cost, kind = self._cost, self._kind
        stage, num = cost.stages[0], self._ragged.num_seqs
        verified = self._verified[length]
        rows = num * (1 + verified)
        tokens = min(rows, cost.max_num_tokens)
        price = stage.linear[tokens] + cost.host[num]
        price += cost.logits[min(rows, len(cost.logits) - 1)]
        if stage.expert:
            price += stage.expert[min(tokens, len(stage.expert) - 1)]
        price += self.verification(stage, verified, num * verified)
        draft = kind.draft
        if length or draft.passes_beyond:
            price += self.proposal(length, length)
            if draft.attention is not None:
                price += draft.computes(num if kind.shares_layers else max(num, gained))
        return price
