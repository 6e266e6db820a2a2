"""The queue's formulas against closed forms and a simulation; the plan against itself."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import capacity_plan as planning
from loadgen.capacity_plan import Assumptions, Target, plan, sensitivity
from loadgen.queueing import (
    Queue,
    Seen,
    erlang_c,
    fitted,
    mean_wait_s,
    percentile_s,
    rate_within,
)

NOTHING = np.zeros(1)


def test_one_server_waits_as_often_as_it_is_busy() -> None:
    for load in (0.0, 0.1, 0.5, 0.9, 0.999):
        assert erlang_c(1, load) == pytest.approx(load)


def test_erlang_c_is_what_its_sum_says() -> None:
    for servers in (2, 3, 10, 40):
        for share in (0.2, 0.7, 0.95):
            load = servers * share
            terms = [load**k / math.factorial(k) for k in range(servers)]
            last = load**servers / math.factorial(servers) / (1 - share)
            assert erlang_c(servers, load) == pytest.approx(last / (sum(terms) + last))


@pytest.mark.parametrize("servers", [0, -1])
def test_a_queue_has_a_server(servers: int) -> None:
    with pytest.raises(ValueError, match="at least one server"):
        erlang_c(servers, 0.5)


def test_the_mean_wait_is_that_of_pollaczek_and_khinchine() -> None:
    service, rate = 0.002, 300.0
    share = rate * service
    for squared in (0.0, 1.0, 4.0):  # constant, exponential, and worse
        known = share * service * (1 + squared) / (2 * (1 - share))
        queue = Queue(1, service, (1 + squared) / 2, NOTHING)
        assert mean_wait_s(queue, rate) == pytest.approx(known)


def test_the_sojourn_in_mm1_is_exponential() -> None:
    service, rate = 0.001, 700.0
    base = np.quantile(
        np.random.default_rng(1).exponential(service, 400_000), np.linspace(0, 0.99999, 20_001)
    )
    queue = Queue(1, service, 1.0, base)
    for share in (0.5, 0.9, 0.99):
        known = -math.log(1 - share) / (1 / service - rate)
        assert percentile_s(queue, rate, share) == pytest.approx(known, rel=0.02)


def simulated(rate: float, service: np.ndarray, servers: int, seed: int) -> np.ndarray:
    """Return the times in an M/G/c queue, first come first served, of that many calls."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, len(service))
    free = [0.0] * servers
    times = np.empty(len(service))
    for i, arrived in enumerate(np.cumsum(gaps)):
        began = max(arrived, heapq.heappop(free))
        heapq.heappush(free, began + service[i])
        times[i] = began + service[i] - arrived
    return times


@pytest.mark.parametrize(("servers", "share_busy"), [(1, 0.5), (1, 0.8), (2, 0.7), (4, 0.85)])
def test_percentiles_are_near_a_simulation(servers: int, share_busy: float) -> None:
    sizes = np.random.default_rng(7).lognormal(math.log(0.001), 0.6, 100_000)
    rate = share_busy * servers / float(sizes.mean())
    squared = float(sizes.var() / sizes.mean() ** 2)
    queue = Queue(servers, float(sizes.mean()), (1 + squared) / 2, sizes[:5_000])
    times = simulated(rate, sizes, servers, 3)
    for share, off in ((0.5, 0.15), (0.99, 0.2)):
        assert percentile_s(queue, rate, share) == pytest.approx(np.quantile(times, share), rel=off)


def test_a_fit_finds_what_it_was_made_with() -> None:
    base = np.full(10, 0.0004)
    true = Queue(2, 0.0002, 2.5, base)
    seen = [Seen(rate, percentile_s(true, rate, 0.99)) for rate in (4_000.0, 7_000.0)]
    found = fitted(2, 0.0002, base, seen, 0.99)
    assert found.variability == pytest.approx(2.5, rel=1e-3)
    assert percentile_s(found, 9_000.0, 0.99) == pytest.approx(
        percentile_s(true, 9_000.0, 0.99), rel=1e-3
    )
    with pytest.raises(ValueError, match="at least one"):
        fitted(1, 0.1, base, [], 0.99)


@given(
    servers=st.integers(1, 32),
    variability=st.floats(0.1, 10),
    objective=st.floats(0.001, 0.1),
)
def test_the_rate_within_an_objective_just_meets_it(
    servers: int, variability: float, objective: float
) -> None:
    queue = Queue(servers, 0.0002, variability, np.array([0.0003, 0.0005]))
    rate = rate_within(queue, 0.99, objective)
    assert 0 < rate < queue.limit_per_s
    assert percentile_s(queue, rate, 0.99) <= objective
    assert percentile_s(queue, rate * 1.001, 0.99) >= objective * 0.999


def test_beyond_its_limit_a_queue_has_no_end() -> None:
    queue = Queue(1, 0.001, 1.0, np.array([0.002]))
    assert percentile_s(queue, 1_000.0, 0.5) == math.inf
    assert rate_within(queue, 0.99, 0.001) == 0.0  # a lone call takes longer


GIVEN = Assumptions(calls_per_core_s=2_000)
MILLION = Target(1_000_000, 10.0, 3)


def test_what_is_left_of_a_plan_carries_the_load_when_a_zone_fails() -> None:
    made = plan(MILLION, GIVEN)
    left = made.scorer_cores * 2 / 3
    assert left * GIVEN.calls_per_core_s >= MILLION.calls_per_s * 0.999
    assert made.hosts * GIVEN.host_cores * GIVEN.host_share >= made.scorer_cores * 0.999
    written = MILLION.calls_per_s * GIVEN.record_bytes * GIVEN.kafka_copies
    assert made.brokers * 2 / 3 * GIVEN.broker_mb_s * 1e6 >= written * 0.999
    assert made.cells == 20
    for count in (made.hosts, made.brokers, made.redis_shards, made.partitions):
        assert count % made.cells == 0
    assert made.partitions / made.cells <= planning.PARTITIONS_MAX


def test_one_zone_has_nothing_to_spare() -> None:
    one, three = Target(10_000, 10, 1), Target(10_000, 10, 3)
    assert (one.spare, three.spare) == (1.0, 1.5)
    assert plan(one, GIVEN).scorer_cores == 5
    assert plan(three, GIVEN).scorer_cores == 8


@given(st.floats(100, 5e6), st.floats(1.05, 3))
def test_more_load_never_costs_less(rate: float, factor: float) -> None:
    less, more = Target(rate), Target(rate * factor)
    assert planning.smooth_cost(more, GIVEN) >= planning.smooth_cost(less, GIVEN)


def test_the_assumption_that_dominates_is_the_first() -> None:
    effects = sensitivity(MILLION, GIVEN)
    assert len(effects) == len(Assumptions.__dataclass_fields__)
    sizes = [each.size for each in effects]
    assert sizes == sorted(sizes, reverse=True)
    by_name = {each.name: each for each in effects}
    assert by_name["calls_per_core_s"].less > 0 > by_name["calls_per_core_s"].more
    assert by_name["core_hour"].more == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("entry", ["cores=2", "core_hour=0", "core_hour=much"])
def test_a_wrong_assumption_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"assumption|above 0|float"):
        planning.with_settings(GIVEN, [entry])
    assert planning.with_settings(GIVEN, ["core_hour=0.1"]).core_hour == 0.1
