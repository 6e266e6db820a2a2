"""The tail: decisions see every earlier event, whatever the featurizer's lag."""

from __future__ import annotations

import numpy as np
import pytest
from fraud.v1 import decision_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fraudsvc.tail import Tail
from tests.conftest import (
    SEED,
    Asked,
    Host,
    Interrupted,
    Payments,
    call_now,
    decisions,
    recomputed,
)
from trainer.bundle import Bundle

STEPS = ("score", "score", "score", "fold", "label", "join", "fold all")


def assert_log_explains_vectors(host: Host) -> int:
    """Every logged vector is the one that folding the log in order gives; return how many."""
    vectors, states = recomputed(host.log)
    logged = decisions(host.log)
    assert logged.keys() == vectors.keys()
    different = [frame for frame, d in logged.items() if d.features != vectors[frame]]
    assert different == []
    host.fold()
    assert stored(host, list(states)) == states
    return len(logged)


def stored(host: Host, keys: list[int]) -> dict[int, bytes]:
    snapshot = host.store.snapshot()
    blobs = {k: bytes(b) for k, b in zip(keys, snapshot.get_many(keys), strict=True) if b}
    snapshot.close()
    return blobs


def play(host: Host, script: list[tuple[str, int]], seed: int, **bounds: int) -> Payments:
    """Run a script of steps over scorers that come and go; each has a log of its own."""
    payments = Payments(seed)
    logs = [host.open_log()]
    scorers: list[Asked] = [host.scorer(logs[0], **bounds)]
    for step, which in script:
        scorer = scorers[which % len(scorers)]
        if step == "score":
            scorer.score(payments.one(), call_now())
        elif step == "fold":
            host.fold(1)
        elif step == "fold all":
            host.fold()
        elif step == "label" and payments.made:
            known = payments.made[which % len(payments.made)]
            scorer.report_labels([payments.label(known.transaction_id)])
        elif step == "join" and len(scorers) < 4:
            logs.append(host.open_log())
            scorers.append(host.scorer(logs[-1], **bounds))
    for log in logs:
        log.close()
    return payments


def drawn(rng: np.random.Generator, steps: int) -> list[tuple[str, int]]:
    names = [str(name) for name in rng.choice(STEPS, steps)]
    return list(zip(names, rng.integers(0, 99, steps).tolist(), strict=True))


def test_with_the_featurizer_stopped_every_event_is_seen(host: Host) -> None:
    rng = np.random.default_rng(SEED)
    script = [step for step in drawn(rng, 1_000) if not step[0].startswith("fold")]
    play(host, script, SEED)
    assert host.worker.position == 0
    assert assert_log_explains_vectors(host) > 400


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 99)), min_size=20, max_size=120
    ),
    seed=st.integers(0, 1 << 16),
)
def test_any_interleaving_gives_the_vectors_of_the_log(
    script: list[tuple[str, int]],
    seed: int,
    bundle: Bundle,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    host = Host(tmp_path_factory.mktemp("host"), bundle)
    try:
        play(host, [("score", 0), *script], seed)
        assert assert_log_explains_vectors(host) > 0
    finally:
        host.close()


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_long_interleavings_give_the_vectors_of_the_log(host: Host, seed: int) -> None:
    play(host, drawn(np.random.default_rng(seed), 1_500), seed)
    assert assert_log_explains_vectors(host) > 400


def test_little_memory_for_states_changes_no_bit(host: Host) -> None:
    script = drawn(np.random.default_rng(SEED + 2), 600)
    play(host, script, SEED + 2, states_bytes_max=96 << 10)
    assert assert_log_explains_vectors(host) > 200


def test_a_scorer_that_was_away_jumps_to_the_store(host: Host) -> None:
    payments, early = Payments(), host.scorer()
    early.score(payments.one(), call_now())
    late = host.scorer(host.log, pending_max=8)
    for _ in range(50):
        early.score(payments.one(), call_now())
    host.fold()
    assert late.score(payments.one(), call_now()).rung == decision_pb2.RUNG_FULL
    early.score(payments.one(), call_now())
    assert_log_explains_vectors(host)


def test_too_many_pending_is_stale_until_the_store_has_caught_up(host: Host) -> None:
    payments, scorer = Payments(), host.scorer(pending_max=16)
    rungs: list[tuple[int, int]] = []
    for _ in range(40):
        answer = scorer.score(payments.one(customer_id=str(len(rungs))), call_now())
        rungs.append((answer.rung, answer.rung_cause))
    full = (decision_pb2.RUNG_FULL, decision_pb2.RUNG_CAUSE_UNSPECIFIED)
    stale = (decision_pb2.RUNG_PARTIAL, decision_pb2.RUNG_CAUSE_STATE_STALE)
    assert rungs == [full] * 16 + [full] + [stale] * 23
    host.fold()
    for _ in range(5):
        answer = scorer.score(payments.one(), call_now())
        assert (answer.rung, answer.rung_cause) == full
    vectors, _ = recomputed(host.log)
    last = sorted(decisions(host.log).items())[-5:]
    assert [d.features for _, d in last] == [vectors[frame] for frame, _ in last]


def test_others_appends_in_between_cost_only_what_was_staged(host: Host) -> None:
    payments, log = Payments(), Interrupted(host.open_log())
    slow, quick = host.scorer(log), host.scorer()
    for i in range(60):
        batch = [payments.one() for _ in range(1 + i % 5)]
        log.before.append(lambda: quick.score(payments.one(), call_now()))
        if i % 3:
            slow.score_batch(batch, call_now())
        else:
            slow.score(batch[0], call_now())
        if i % 7 == 0:
            host.fold(1)
    tail = slow.scorer._tail
    assert isinstance(tail, Tail)
    known = len(tail._arena)
    log.before.append(lambda: quick.score(payments.one(), call_now()))
    slow.score_batch([payments.one() for _ in range(4)], call_now())
    assert len(tail._arena) >= known > 20
    # What comes after sees all that came before, in the log's order.
    last = payments.one()
    slow.score(last, call_now())
    vectors, _ = recomputed(host.log)
    logged = decisions(host.log)
    (place,) = (at for at, d in logged.items() if d.transaction == last)
    assert logged[place].features == vectors[place]
