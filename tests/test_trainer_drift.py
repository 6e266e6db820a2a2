"""What is watched: alarms where something changed, few where nothing did, and their evidence."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from trainer.alarms import Alarm
from trainer.drift import WATCHES, DriftSettings, DriftWatch, MissedWatch, Watch
from trainer.edetector import EDetector
from trainer.labelled import FRAUD, JOINED, LEGITIMATE, Joined

SEED = 11
SETTINGS = DriftSettings(input_every=1, warm_rows=200, values_max=1_500)


def run_length(share: float, baseline: float, limit: float, seed: int, most: int) -> int:
    """Return how many outcomes an e-detector takes until its alarm."""
    random = np.random.default_rng(seed)
    detector = EDetector(baseline, limit)
    for number, miss in enumerate((random.random(most) < share).tolist(), 1):
        if detector.update(miss, number):
            return number
    return most


def test_false_alarms_are_as_rare_as_promised() -> None:
    runs = [run_length(0.55, 0.55, 200.0, seed, most=2_000) for seed in range(SEED, SEED + 40)]
    print(f"seeds {SEED} to {SEED + 39}: mean {np.mean(runs):.0f}, promised 200")
    # Runs that are cut off only make the mean smaller.
    assert np.mean(runs) + 2 * np.std(runs) / np.sqrt(len(runs)) >= 200


def test_a_rise_of_misses_is_found_within_few_labels() -> None:
    """FACTS: 55 to 80 %; ADWIN needs 210 labels."""
    delays, adwin = [], []
    for seed in range(SEED, SEED + 40):
        random = np.random.default_rng(seed)
        detector, watch = EDetector(0.55, 1_000.0), WATCHES["ADWIN"][0](DriftSettings(delta=0.002))
        for miss in random.random(100) < 0.55:
            if detector.update(bool(miss), 0):
                detector.restart()
            watch.update(float(miss))
        found = {"e": 0, "adwin": 0}
        for number, miss in enumerate(random.random(600) < 0.8, 1):
            if not found["e"] and detector.update(bool(miss), number):
                found["e"] = number
            watch.update(float(miss))
            if not found["adwin"] and watch.drift_detected:
                found["adwin"] = number
        delays.append(found["e"] or 600)
        adwin.append(found["adwin"] or 600)
    print(f"seeds {SEED} to {SEED + 39}: e-detector {np.median(delays)}, ADWIN {np.median(adwin)}")
    assert np.median(delays) <= 35
    assert np.median(adwin) > 2 * np.median(delays)


def test_a_rise_comes_with_its_evidence() -> None:
    detector = EDetector(0.2, 100.0)
    rise = None
    for number in range(50):
        assert detector.update(number % 5 == 0, number * 1_000) is None
    for number in range(50, 80):
        rise = rise or detector.update(True, number * 1_000)
    assert rise is not None
    assert 48_000 <= rise.since_ms <= 51_000
    assert rise.before == pytest.approx(0.2, abs=0.03)
    assert rise.after == 1.0
    assert rise.e_value >= 100.0


def test_an_e_detector_goes_through_arrays() -> None:
    detector = EDetector(0.3, 1e6)
    random = np.random.default_rng(SEED)
    for number, miss in enumerate((random.random(700) < 0.4).tolist()):
        detector.update(miss, number)
    again = EDetector.from_arrays(detector.to_arrays())
    for one in (detector, again):
        one.update(True, 700)
    assert again.e_value == detector.e_value
    assert len(again.to_arrays()["misses"]) == 512
    with pytest.raises(ValueError, match="sums"):
        EDetector.from_arrays({**detector.to_arrays(), "log_sums": np.zeros(3)})
    with pytest.raises(ValueError, match="run_length"):
        EDetector(0.5, 1.0)


@pytest.mark.parametrize("method", sorted(WATCHES))
def test_a_shift_is_found_and_dated(method: str) -> None:
    print(f"seed {SEED}")
    random = np.random.default_rng(SEED)
    every = WATCHES[method][1]
    before, after = random.normal(5.0, 2.0, 600 * every), random.normal(9.0, 2.0, 300 * every)
    watch = Watch("amount", method, SETTINGS)
    alarms = [watch.update(value, number) for number, value in enumerate(np.r_[before, after])]
    found = next(alarm for alarm in alarms if alarm)
    assert found.subject == "amount"
    assert found.method == method
    assert found.since_ms == pytest.approx(600 * every, abs=5 * every)
    assert found.before == pytest.approx(5.0, abs=0.5)
    assert found.after == pytest.approx(9.0, abs=1.0)
    assert json.loads(found.to_json())["code"] == "DRIFT"


@pytest.mark.parametrize("method", sorted(WATCHES))
def test_nothing_is_found_where_nothing_changed(method: str) -> None:
    print(f"seed {SEED}")
    every = WATCHES[method][1]
    # Amounts have long tails.
    values = np.random.default_rng(SEED).lognormal(3.0, 0.7, 4_000 * every)[:20_000]
    watch = Watch("amount", method, SETTINGS)
    alarms = [a for n, value in enumerate(values.tolist()) if (a := watch.update(value, n))]
    assert len(alarms) <= 1


def traffic(rows: int, shift: float, random: np.random.Generator) -> tuple[Any, Any]:
    vectors = random.normal(size=(rows, 4)).astype(np.float32)
    vectors[:, 2] += shift
    vectors[:3, 2] = np.nan
    return vectors, random.normal(-3.0, 1.0, rows)


def test_restored_it_finds_the_same() -> None:
    random = np.random.default_rng(SEED)
    settings = DriftSettings(input_every=3, warm_rows=100, values_max=400)
    one, two = (DriftWatch({"a": 0, "c": 2}, settings, 0.3) for _ in range(2))
    for start in range(0, 2_000, 250):
        vectors, logits = traffic(250, 0.0, random)
        assert one.see_traffic(vectors, logits, np.arange(start, start + 250)) == []
    two.restore(one.to_arrays())
    vectors, logits = traffic(600, 3.0, random)
    found = [each.see_traffic(vectors, logits, np.arange(2_000, 2_600)) for each in (one, two)]
    assert found[0] == found[1]
    assert {alarm.subject for alarm in found[0]} == {"c"}
    for name, array in one.to_arrays().items():
        assert array.tobytes() == two.to_arrays()[name].tobytes(), name


def test_another_champion_has_scores_of_its_own() -> None:
    random = np.random.default_rng(SEED)
    told = []
    for swapped in (False, True):
        watch = DriftWatch({"a": 0}, DriftSettings(input_every=1, warm_rows=100, values_max=2_000))
        vectors, logits = traffic(400, 0.0, random)
        assert watch.see_traffic(vectors, logits, np.arange(400)) == []
        if swapped:
            watch.serve_another()
        found = watch.see_traffic(vectors, logits + 4.0, np.arange(400, 800))
        told.append({alarm.subject for alarm in found})
    assert told == [{"score"}, set()]


def confirmed(verdicts: list[int]) -> Joined:
    rows: Any = np.zeros(len(verdicts), JOINED)
    rows["verdict"], rows["label_time_ms"] = verdicts, np.arange(len(verdicts))
    return Joined(rows, np.zeros((len(verdicts), 4), np.float32))


def test_missed_frauds_raise_an_alarm_and_good_payments_count_for_nothing() -> None:
    watch = DriftWatch({}, SETTINGS, missed_baseline=0.2)
    goods = confirmed([LEGITIMATE] * 60)
    assert watch.see_labels(goods, [True] * 60) == []
    frauds = confirmed([FRAUD] * 30)
    alarms = watch.see_labels(frauds, [True] * 30)
    assert alarms[0].code == "MISSED_FRAUD"
    assert (alarms[0].since_ms, alarms[0].after) == (0, 1.0)
    assert alarms[0].statistic >= alarms[0].limit == 1_000.0


def test_the_baseline_of_missed_frauds_is_learnt() -> None:
    watch, again = (MissedWatch(DriftSettings(baseline_frauds=40)) for _ in range(2))
    for number in range(20):
        assert watch.update(number % 2 == 0, number) is None
    again.restore(watch.to_arrays())
    alarms: list[Alarm] = []
    for one in (watch, again):
        alarms = [a for n in range(20, 40) if (a := one.update(n % 2 == 0, n))]
        assert alarms == []
        alarms = [a for n in range(40, 90) if (a := one.update(True, n))]
        assert alarms
    assert alarms[0].after == 1.0


def test_what_cannot_be_watched_is_refused() -> None:
    with pytest.raises(ValueError, match="32"):
        DriftWatch({str(n): n for n in range(33)})
    with pytest.raises(ValueError, match="values_max"):
        DriftSettings(values_max=100)
    with pytest.raises(ValueError, match="shape"):
        Watch("a", "ADWIN", SETTINGS).restore(np.zeros((2, 5_000)))
