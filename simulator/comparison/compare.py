"""Runs experiments on common random numbers and compares each with the first.

Under one seed every experiment meets the same requests (arrivals and lengths are drawn from named
streams of the seed, whatever serves them), so what differs is what was changed, not luck. That is
checked, not assumed: an experiment on other requests is compared unpaired. Where seeds draw
nothing, as with a trace, or where there is one seed, requests are paired instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from simulator.comparison.differences import Side, arm_of, pairing_of
from simulator.comparison.measured import Measured
from simulator.comparison.outcome import LEVEL, VALUES_ONLY, Comparison
from simulator.comparison.replicates import Task, fingerprint, replicates, seeded
from simulator.config import Document
from simulator.config.resolve import checked_file
from simulator.errors import ConfigError, InfeasiblePlan

NUM_SEEDS, MOST_SEEDS = 5, 10_000

Progress = Callable[[int, int, str], None]  # simulations done, all simulations, what ended


def compare(
    experiments: Mapping[str, Document | Measured],
    *,
    num_seeds: int = NUM_SEEDS,
    jobs: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Compare experiments, or measured results, with the first of them, by name.

    Each experiment runs under `num_seeds` seeds from the first experiment's own on; results do not
    depend on `jobs` (processes; 0 = all cores). After Ctrl-C the seeds that every experiment
    finished are compared, if there are two.

    Raises:
        ConfigError: fewer than two experiments, or one that cannot be used.
        InfeasiblePlan: fewer than two can run.
        KeyboardInterrupt: before two seeds were finished.
    """
    if len(experiments) < 2:
        raise ConfigError(f"compare: expected two or more experiments (got {len(experiments)})")
    if not 1 <= num_seeds <= MOST_SEEDS:
        raise ConfigError(f"seeds: expected an int from 1 to {MOST_SEEDS:,} (got {num_seeds})")
    sides = [
        Side(name=name, measured=given)
        if isinstance(given, Measured)
        else Side(name=name, document=given)
        for name, given in experiments.items()
    ]
    seeds = _prepare(sides, num_seeds)
    is_cut = _simulate(sides, seeds, progress, jobs)
    _check_enough(sides)
    if is_cut:
        runs = [side for side in sides if side.runs and side.is_drawn]
        seeds = [seed for seed in seeds if all(seed in side.found for side in runs)]
        if len(seeds) < 2 or not all(side.found for side in sides if side.runs):
            raise KeyboardInterrupt
    return _compared(sides, seeds, num_seeds, is_cut)


def _prepare(sides: Sequence[Side], num_seeds: int) -> list[int]:
    """Resolve every experiment, so that what is wrong shows before anything runs; the seeds."""
    stated = [checked_file(side.document).seed for side in sides if side.document is not None]
    seeds = list(range(stated[0], stated[0] + num_seeds)) if stated else [0]
    for side in sides:
        if side.document is None:
            continue
        try:
            tables = [seeded(side.document, seed).workload for seed in seeds[:2]]
            side.is_drawn = len({str(fingerprint(table)) for table in tables}) > 1
        except InfeasiblePlan as error:
            side.reason = str(error)
    return seeds


def _simulate(
    sides: Sequence[Side], seeds: Sequence[int], progress: Progress | None, jobs: int
) -> bool:
    """Every experiment under its seeds, seed after seed; True where Ctrl-C came before the end."""
    tasks = [
        Task(
            arm=number,
            name=side.name,
            seed=seed,
            document=side.document,
            has_columns=not side.is_drawn,
        )
        for seed in seeds
        for number, side in enumerate(sides)
        if side.document is not None and side.runs and (side.is_drawn or seed == seeds[0])
    ]
    done = 0
    try:
        for task, found in replicates(tasks, jobs):
            side = sides[task.arm]
            done += 1
            if found.reason:
                side.reason = side.reason or found.reason
            side.found[task.seed] = found
            if progress is not None:
                progress(done, len(tasks), f"{side.name}, seed {task.seed}")
    except KeyboardInterrupt:
        return True
    return False


def _check_enough(sides: Sequence[Side]) -> None:
    able = [side for side in sides if not side.reason]
    if len(able) < 2:
        reasons = "; ".join(f"{side.name}: {side.reason}" for side in sides if side.reason)
        raise InfeasiblePlan(f"nothing to compare: {len(able)} of {len(sides)} can run ({reasons})")


def _compared(
    sides: Sequence[Side], seeds: Sequence[int], num_seeds: int, is_cut: bool
) -> Comparison:
    base = next(side for side in sides if not side.reason)
    for side in sides:  # seeds that others did not finish
        side.found = {seed: side.found[seed] for seed in seeds if seed in side.found}
    pairings = [pairing_of(base, side)[0] for side in sides]
    num_compared = sum(pairing not in ("", VALUES_ONLY) for pairing in pairings)
    level = 1 - (1 - LEVEL) / max(1, num_compared)  # Bonferroni
    arms = [arm_of(base, side, level) for side in sides]
    prints = [found.requests for found in base.found.values()]
    drawn = [part for part in prints[0] if len({p[part] for p in prints}) > 1] if prints else []
    able = any(side.is_drawn for side in sides if side.runs)
    return Comparison(
        arms=tuple(arms),
        baseline=arms[sides.index(base)],
        seeds=tuple(seeds if able else seeds[:1]),
        num_seeds=num_seeds,
        drawn=tuple(drawn),
        num_compared=num_compared,
        interrupted=is_cut,
    )
