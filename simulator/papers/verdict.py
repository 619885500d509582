"""From values of several seeds to a verdict with a confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simulator.papers.claims import Claim

REPRODUCED, DIRECTION, MISSED, ERROR = (
    "reproduced",
    "direction only",
    "not reproduced",
    "error",
)
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a claim fared."""

    system: str
    claim: Claim
    values: tuple[float, ...]  # of each seed
    wall_s: float  # over all seeds
    error: str = ""

    @property
    def value(self) -> float:
        """Mean over the seeds; NaN where the measure failed."""
        return math.fsum(self.values) / len(self.values) if self.values else math.nan

    @property
    def ci(self) -> tuple[float, float] | None:
        """Interval of the mean (Student's t); None with one seed."""
        return interval(self.values)

    @property
    def verdict(self) -> str:
        if self.error or math.isnan(self.value):
            return ERROR
        if self.claim.low <= self.value <= self.claim.high:
            return REPRODUCED
        return DIRECTION if self.claim.points_there(self.value) else MISSED

    def to_json(self) -> dict[str, Any]:
        """The row of `headway reproduce --json`."""
        return {
            "system": self.system,
            "id": self.claim.id,
            "claim": self.claim.claim,
            "source": self.claim.source,
            "value": self.value,
            "low": self.claim.low,
            "high": self.claim.high,
            "unit": self.claim.unit,
            "verdict": self.verdict,
            "ci": self.ci,
            "seeds": len(self.values),
            "evidence": self.claim.evidence,
            "why": self.claim.why,
            "error": self.error,
            "wall_s": round(self.wall_s, 3),
        }


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Confidence interval of the mean of independent values."""
    num = len(values)
    if num < 2:
        return None
    from scipy.stats import t

    mean = math.fsum(values) / num
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (num - 1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, num - 1)) * spread / math.sqrt(num)
    return mean - half, mean + half
