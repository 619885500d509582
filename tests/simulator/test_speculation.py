"""Acceptance models, drafters and length policies against closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from simulator.catalog import load_model
from simulator.errors import ConfigError
from simulator.speculation import (
    ACCEPTANCES,
    Acceptance,
    BatchTable,
    Beta,
    Confidence,
    Drafter,
    DraftModel,
    Eagle,
    Geometric,
    Kangaroo,
    Lookahead,
    NGram,
    PerPosition,
    Recorded,
    SmartSpec,
    Source,
    Speculation,
    Tree,
)
from simulator.speculation.lengths import Goodput, best_length, expected_tokens

Ints = NDArray[np.int64]
LENGTHS = np.full(600, 500)


def source(acceptance: Acceptance, longest: int = 5, drafter: Drafter | None = None) -> Source:
    return acceptance.open(drafter or Eagle(), longest, 0, LENGTHS)


def all_runs(acceptance: Acceptance, longest: int = 5, drafter: Drafter | None = None) -> Ints:
    """Runs of every request and position: [requests, positions]."""
    made = source(acceptance, longest, drafter)
    return np.array([made.outcomes(i)[0] for i in range(len(LENGTHS))]).astype(np.int64)


# --- acceptance ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.7, 0.9, 1.0])
def test_a_geometric_draft_gives_the_published_number_of_tokens(rate: float) -> None:
    """(1 - a^(k+1)) / (1 - a), the bonus token included, within four standard errors."""
    runs = all_runs(Geometric(rate=rate))
    gains = []
    for row in runs[:200]:
        position = 1
        while position < len(row):
            gains.append(int(row[position]) + 1)
            position += gains[-1]
    error = np.std(gains) / len(gains) ** 0.5
    assert abs(np.mean(gains) - expected_tokens(rate, 5)) <= 4 * error + 1e-12


def test_expected_tokens_are_the_closed_form() -> None:
    assert expected_tokens(0.7, 0) == pytest.approx(1.0)
    assert expected_tokens(0.7, 3) == pytest.approx(1 + 0.7 + 0.49 + 0.343)
    assert expected_tokens(1.0, 5) == 6.0
    assert expected_tokens(0.0, 5) == 1.0


def test_every_run_length_is_as_likely_as_its_power() -> None:
    runs = all_runs(Geometric(rate=0.6))
    for length in range(1, 6):
        assert (runs >= length).mean() == pytest.approx(0.6**length, abs=0.005)


def test_outcomes_do_not_depend_on_who_asks_first() -> None:
    forward, backward = source(Beta()), source(Beta())
    mine = {i: forward.outcomes(i)[0].tolist() for i in range(600)}
    theirs = {i: backward.outcomes(i)[0].tolist() for i in reversed(range(600))}
    assert mine == theirs


def test_beta_requests_have_rates_of_their_own() -> None:
    first = all_runs(Beta(mean=0.7, concentration=4.0), longest=1)
    rates = first.mean(axis=1)
    assert rates.mean() == pytest.approx(0.7, abs=0.03)
    assert rates.var() == pytest.approx(0.7 * 0.3 / 5 + 0.21 / 500, rel=0.15)


def test_autocorrelated_luck_keeps_its_mean_and_lasts() -> None:
    many = Beta(mean=0.6, concentration=1e6, autocorrelation=0.8)
    hits = all_runs(many, longest=1).astype(np.float64)
    assert hits.mean() == pytest.approx(0.6, abs=0.01)
    lag = np.corrcoef(hits[:, :-1].ravel(), hits[:, 1:].ravel())[0, 1]
    alone = all_runs(Beta(mean=0.6, concentration=1e6), longest=1).astype(np.float64)
    none = np.corrcoef(alone[:, :-1].ravel(), alone[:, 1:].ravel())[0, 1]
    # Of two clipped Gaussians of correlation 0.8 around the 0.6 quantile (orthant probability).
    assert lag == pytest.approx(0.587, abs=0.02)
    assert abs(none) < 0.01


def test_rates_by_position_are_conditional_on_what_came_before() -> None:
    runs = all_runs(PerPosition(rates=(0.9, 0.5, 0.2)))
    for position, rate in enumerate((0.9, 0.5, 0.2, 0.2, 0.2)):
        reached = runs >= position
        assert (runs > position)[reached].mean() == pytest.approx(rate, abs=0.01)


def test_confidence_is_calibrated_and_stops_the_draft() -> None:
    made = source(Confidence(mean=0.7, concentration=2.0), drafter=Kangaroo(threshold=0.6))
    pairs = [made.outcomes(i) for i in range(600)]
    runs = np.concatenate([runs for runs, _ in pairs])
    limits = np.concatenate([limits for _, limits in pairs if limits is not None])
    assert (runs >= 1).mean() == pytest.approx(0.7, abs=0.01)
    from scipy.stats import beta

    sure = beta(1.4, 0.6)
    assert (limits >= 1).mean() == pytest.approx(sure.sf(0.6), abs=0.01)
    known = beta(2.4, 0.6).sf(0.6) * 0.7 / sure.sf(0.6)  # mean confidence above the threshold
    assert (runs >= 1)[limits >= 1].mean() == pytest.approx(known, abs=0.01)


def test_a_recorded_profile_is_replayed_in_order(tmp_path: Path) -> None:
    file = tmp_path / "profile.csv"
    file.write_text("request,accepted\n0,3\n0,0\n0,1\n1,5\n")
    made = Recorded(file=file).open(Eagle(), 5, 0, LENGTHS)
    for request in range(5):
        runs = made.outcomes(request)[0]
        position, seen = 1, []
        while position < 400:
            seen.append(int(runs[position]))
            position += seen[-1] + 1
        start = next(i for i in range(4) if [3, 0, 1, 5][i] == seen[0])
        assert seen[:40] == [[3, 0, 1, 5][(start + i) % 4] for i in range(40)]


def test_a_recorded_profile_says_nothing_of_longer_drafts(tmp_path: Path) -> None:
    file = tmp_path / "profile.csv"
    file.write_text("accepted\n2\n1\n")
    with pytest.raises(ConfigError, match="expected an int up to 2"):
        Recorded(file=file).open(Eagle(), 5, 0, LENGTHS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokens\n1\n", "expected a CSV file with a column 'accepted' \\(got tokens\\)"),
        ("accepted\n1\n-2\n", ":3: accepted: expected an int >= 0 \\(got '-2'\\)"),
        ("accepted\n0\n", "expected at least one row that accepts a token"),
    ],
)
def test_a_broken_profile_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "broken.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Recorded(file=file).open(Eagle(), 1, 0, LENGTHS)


def test_n_grams_match_as_often_as_stated() -> None:
    made = source(Geometric(), drafter=NGram(match=0.3))
    limits = np.concatenate([made.outcomes(i)[1] for i in range(600)])  # type: ignore[misc]
    assert set(np.unique(limits).tolist()) == {0, 5}
    assert (limits == 5).mean() == pytest.approx(0.3, abs=0.005)


# --- drafters -----------------------------------------------------------------------------------


def test_a_tree_hits_where_any_candidate_does() -> None:
    assert Tree(width=5).hit_rate(0.6) == pytest.approx(0.8, abs=0.001)  # Medusa's top five
    assert Tree(width=1).hit_rate(0.5) == pytest.approx(0.5)
    assert Tree(width=4).verified(5) == 20
    hit = Tree(width=3).hit_rate(0.5)
    deep = all_runs(Geometric(rate=0.5), drafter=Tree(width=3))
    assert (deep >= 2).mean() == pytest.approx(hit**2, abs=0.01)


def test_lookahead_verifies_its_decoding_length_whatever_the_branch() -> None:
    drafter = Lookahead(decoding_length=64)
    assert [drafter.verified(k) for k in (0, 1, 12)] == [0, 64, 64]


def test_an_eagle_head_is_one_layer_and_its_projection() -> None:
    target = load_model("llama-3.1-8b")
    spec = Eagle().draft(target)
    assert spec.model is not None
    assert spec.model.num_layers == 1
    assert spec.extra_gemms == ((8192, 4096),)
    assert not spec.owns_vocabulary


def test_a_kangaroo_adapter_has_67_million_parameters() -> None:
    spec = Kangaroo(exit_layer=2).draft(load_model("llama-2-7b"))
    assert sum(a * b for a, b in spec.extra_gemms) == 4 * 4096**2  # 67.1 M
    assert (spec.skipped_layers, spec.owns_layers) == (2, False)


def test_a_drafter_and_an_acceptance_that_do_not_go_together_are_named() -> None:
    with pytest.raises(ConfigError, match=r"kangaroo .* acceptance kind confidence .got geometric"):
        Speculation(drafter=Kangaroo())
    with pytest.raises(ConfigError, match="num_speculative_tokens: expected an int from 1 to 64"):
        Speculation(drafter=DraftModel(model="llama-160m"), num_speculative_tokens=65)
    with pytest.raises(ConfigError, match="exit_layer: expected an int below 32"):
        Kangaroo(exit_layer=32).draft(load_model("llama-2-7b"))


def test_kinds_are_the_names_in_the_registry() -> None:
    assert [kind.kind for kind in ACCEPTANCES.values()] == list(ACCEPTANCES)


# --- lengths ------------------------------------------------------------------------------------

# Coefficients the authors of SmartSpec publish for an H100 (branch `batch-dsd`), in ms: Llama-8B
# on a token of KV, a batched token, a sequence, an iteration; EAGLE's on KV, sequence, step.
TARGET = (4.859e-5, 1.844e-2, -4.331e-2, 6.939)
EAGLE = (2.897e-6, 4.387e-5, 0.4522, 5.528e-3, 0.4471)


def authors_ms(num_seqs: int, length: int, context: int = 512) -> float:
    """Milliseconds of one iteration by the authors' regression."""
    kv = num_seqs * context
    total = TARGET[0] * kv + TARGET[1] * num_seqs * (length + 1) + TARGET[2] * num_seqs + TARGET[3]
    if length:
        total += EAGLE[0] * kv + EAGLE[1] * num_seqs + EAGLE[2] * length
        total += EAGLE[3] * num_seqs + EAGLE[4]
    return total


def authors_speed_up(rate: float, num_seqs: int, length: int) -> float:
    tokens = expected_tokens(rate, length)
    return tokens * authors_ms(num_seqs, 0) / authors_ms(num_seqs, length)


def test_smartspec_chooses_as_the_authors_coefficients_say() -> None:
    """SS-1: k* exactly, speed-ups within 1 %."""
    sizes = (1, 8, 32, 64, 128, 256)
    chosen = [
        best_length(0.7, 8, lambda k, num=num: round(1e9 * authors_ms(num, k)))  # type: ignore[misc]
        for num in sizes
    ]
    assert chosen == [5, 4, 3, 3, 2, 0]
    speed_ups = [authors_speed_up(0.7, num, k) for num, k in zip(sizes, chosen, strict=True)]
    assert speed_ups == pytest.approx([2.09, 1.95, 1.64, 1.38, 1.09, 1.00], rel=0.01)
    assert authors_speed_up(0.5, 128, 3) == pytest.approx(0.78, abs=0.005)
    assert authors_speed_up(0.7, 128, 3) == pytest.approx(1.05, abs=0.005)
    handicapped = best_length(0.7, 8, lambda k: round(1e9 * authors_ms(128, k)), 1.0, 1.1)
    assert handicapped == 0


def test_the_best_length_is_the_brute_force_maximum() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        rate, match = rng.random(), rng.random()
        prices = np.sort(rng.integers(1_000, 5_000, 9)).tolist()
        goodput = [(match * expected_tokens(rate, k) + 1 - match) / prices[k] for k in range(9)]
        assert best_length(rate, 8, prices.__getitem__, match) == int(np.argmax(goodput))


def learn(chooser: Goodput, rate: float, iterations: int, num_seqs: int = 16) -> list[int]:
    """Lengths chosen while every draft has its expected outcome; 10 ms, and 1 ms a token."""
    chosen = []
    for _ in range(iterations):
        length = chooser.choose(num_seqs, lambda k: 10_000 + 1_000 * k)
        accepted = num_seqs * (expected_tokens(rate, length) - 1)
        trials = accepted + num_seqs * (1 - rate**length) if length else 0
        chooser.observe(num_seqs, num_seqs if length else -1, round(accepted), round(trials))
        chosen.append(length)
    return chosen


def test_smartspec_converges_within_two_intervals_after_a_shift() -> None:
    """SS-4."""
    chooser = Goodput(SmartSpec(interval=20), 8)
    for rate in (0.9, 0.3, 0.8):
        lengths = learn(chooser, rate, 80)
        best = best_length(rate, 8, lambda k: 10_000 + 1_000 * k)
        assert abs(lengths[40] - best) <= 1
        assert chooser.rate == pytest.approx(rate, abs=0.03)


def test_smartspec_probes_where_it_rests() -> None:
    chooser = Goodput(SmartSpec(probe_interval=50), 4)
    lengths = learn(chooser, 0.0, 200)
    assert 0 in lengths
    resting = lengths[lengths.index(0) :]
    assert [k for k in resting if k] == [4] * len([k for k in resting if k])
    assert 2 <= len([k for k in resting if k]) <= 4
    assert chooser.rate < 0.2


def test_requests_share_the_common_length_by_their_own_rates() -> None:
    chooser = Goodput(SmartSpec(per_request=True, weight=1.0), 8)
    chooser.observe_each([1, 2], np.array([4, 1]), np.array([4, 4]))
    spread = chooser.spread(3, [1, 2])
    assert spread is not None
    # Rates 4 / 4 and 1 / 2: shares of 2 x 3 tokens.
    assert spread.tolist() == [4, 2]


def test_the_batch_table_is_read_by_rows() -> None:
    chooser = BatchTable().open(4)
    assert [chooser.choose(n, len) for n in (1, 64, 65, 128, 129, 600)] == [3, 3, 1, 1, 0, 0]  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"expected rows .* that follow one another from 1"):
        BatchTable(table=((1, 4, 2), (6, 8, 1))).check(4)
    with pytest.raises(ConfigError, match="tokens 0 to 2"):
        BatchTable(table=((1, 4, 3),)).check(2)


def test_an_autoregressive_series_is_its_recursion() -> None:
    from simulator.speculation.acceptance import ar1

    noise = np.random.default_rng(0).standard_normal(300)
    for correlation in (0.0, 0.3, 0.95):
        series = [noise[0]]
        for each in noise[1:]:
            series.append(correlation * series[-1] + (1 - correlation**2) ** 0.5 * each)
        assert ar1(noise, correlation) == pytest.approx(np.array(series), abs=1e-12)
