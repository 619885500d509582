from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from simulator.errors import ConfigError
from simulator.search import run_search
from simulator.search.candidates import candidates
from simulator.search.store import Store, code_hash, describe, trial_key, workload_hash
from simulator.search.trial import Bench
from simulator.spec import Slo
from tests.simulator.search_support import small_search, small_table


def test_a_second_search_takes_everything_from_the_store(tmp_path: Path) -> None:
    file = tmp_path / "trials.db"
    spec = small_search(
        "llama-3.1-8b",
        "1xH100-SXM",
        objective="goodput",
        slo=Slo(ttft_s=0.2, attainment=0.9),
        scheduler_variants=False,
    )
    first, again = (run_search(spec, store=file) for _ in range(2))
    assert first.num_simulations > 1
    assert first.num_from_store == 0
    assert (again.num_simulations, again.num_from_store) == (0, first.num_simulations)
    texts = [json.dumps({**o.to_json(), "wall_s": 0}) for o in (first, again)]
    assert texts[0] == texts[1]


def test_a_killed_search_resumes_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "trials.db"
    code = f"""
        import os
        from simulator.search import run_search
        from tests.simulator.search_support import small_search

        def kill(done, total, best):
            if done == 3:
                os._exit(9)

        run_search(small_search(scheduler_variants=False), kill, store={str(file)!r})
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, cwd=Path(__file__).parents[2]).returncode == 9
    resumed = run_search(small_search(scheduler_variants=False), store=file)
    assert resumed.num_from_store == 3
    assert resumed.num_simulations == len(resumed.records) - 3
    fresh = run_search(small_search(scheduler_variants=False))
    texts = [json.dumps({**o.to_json(), "wall_s": 0}) for o in (resumed, fresh)]
    assert texts[0] == texts[1]


def test_keys_change_with_everything_that_matters_and_nothing_else() -> None:
    def key(rate_scale: float = 1.0, **changes: Any) -> str:
        spec = small_search(scheduler_variants=False, **changes)
        experiment = Bench(spec, candidates(spec)).experiment(0, 1.0)
        return trial_key(experiment, rate_scale, workload_hash(spec.workload))

    assert key() == key()
    assert key() == key(workload=small_table(name="another name"))
    others = [
        key(1.5),
        key(model="llama-3-8b"),
        key(cluster="4xH200-SXM"),
        key(workload=small_table(41)),
        key(slo=Slo(ttft_s=1.0)),
        key(seed=1),
        key(engine={"prefix_caching": False}),
        key(horizon_s=60.0),
    ]
    assert len({key(), *others}) == len(others) + 1
    assert len(code_hash()) == 64


def test_describe_tells_types_and_values_apart() -> None:
    assert describe(Slo(ttft_s=1.0)) != describe(Slo(tpot_s=1.0))
    assert describe((1, 2)) == describe([1, 2])
    assert describe(1.0) != describe(1)


def test_a_file_that_is_no_store_is_a_config_error(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database, but long enough to be read as one" * 50)
    with pytest.raises(ConfigError, match="cannot be used as a results store"):
        Store(file)
