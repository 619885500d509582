"""The whole error tree. Each error is one clear line; the CLI turns it into an exit code.

SimulatorError
├─ ConfigError         bad input: names file, key, expectation and value       (exit code 2)
├─ InfeasiblePlan      an expected negative answer, with its reason            (exit code 3)
├─ OutsideCalibration  a query outside the measured grid                       (exit code 2)
└─ InvariantViolation  our own bug: the numbers on both sides                  (exit code 1)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SimulatorError(Exception):
    """Base of every error Headway raises on purpose."""


class ConfigError(SimulatorError):
    """Input that cannot be used; the message names file, key, expectation and value."""


class InfeasiblePlan(SimulatorError):
    """A plan that cannot run on this hardware; `str(error)` is the reason."""


class OutsideCalibration(SimulatorError):
    """A cost query outside the measured grid, where extrapolation was not asked for."""


class InvariantViolation(SimulatorError):
    """A broken conservation or causality law: a bug in Headway itself."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """ConfigError for a name that is not in a catalogue, with the nearest match and the list."""
    names = sorted(known)
    lowered = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    hint = f"; did you mean '{lowered[close[0]]}'?" if close else ""
    return ConfigError(f"unknown {what} '{name}'{hint} (known: {', '.join(names)})")
