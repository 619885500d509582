"""Claims of published systems, measured again: one folder of claims and one module of code each.

`experiments/papers/<system>/claim.yaml` says what a paper claims and which band we accept and why;
`simulator/papers/<system>.py` holds `MEASURES`, a function a measure: from a `Case` (experiment,
seed, quick) to one number. Nothing else registers a system. A module may also have
`picture(case)`, the curves drawn beside the claims.
"""

from simulator.papers.case import Case, Line, Measure, Picture
from simulator.papers.claims import Claim, System, find_systems, load_system
from simulator.papers.runner import reproduce
from simulator.papers.verdict import Verdict

__all__ = [
    "Case",
    "Claim",
    "Line",
    "Measure",
    "Picture",
    "System",
    "Verdict",
    "find_systems",
    "load_system",
    "reproduce",
]
