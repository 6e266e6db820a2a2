"""When learning stops and why, that it goes on again, and who is suspected of poisoning labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.guards import MINUTE_MS, Figures, GuardSettings, LabelWindow, Stop, judge
from trainer.labelled import (
    ANALYST,
    CHARGEBACK,
    CUSTOMER,
    FRAUD,
    JOINED,
    LABEL,
    LEGITIMATE,
    Cause,
    Joined,
    Refusal,
)
from trainer.reporters import ReporterSettings, ReporterWatch

SEED = 17
SETTINGS = GuardSettings()
QUIET = Figures(
    labels=100, quiet_ms=0, minute_labels=5, usual_labels=5.0, reporter=1, reporter_share=0.3,
    merchant=9, merchant_share=0.1, positive_share=0.5,
)  # fmt: skip
APPROVE, DECLINE = 1, 3


def labels(
    count: int,
    *,
    reporters: int | list[int] = 1,
    merchants: int | list[int] | None = None,
    frauds: float = 0.5,
    source: int = ANALYST,
    outcome: int = DECLINE,
) -> Joined:
    rows: Any = np.zeros(count, JOINED)
    rows["reporter"] = np.resize(reporters, count)
    rows["merchant"] = np.arange(1, count + 1) if merchants is None else np.resize(merchants, count)
    rows["verdict"] = np.where(np.arange(count) < frauds * count, FRAUD, LEGITIMATE)
    rows["source"], rows["outcome"] = source, outcome
    return Joined(rows, np.zeros((count, 1), np.float32))


def one_of(joined: Joined, at: int) -> Joined:
    return joined[slice(at, at + 1)]


NONE = labels(0)


@pytest.mark.parametrize(
    ("stop", "field", "calm", "between", "over"),
    [
        (Stop.DRIED_UP, "quiet_ms", 0, 10 * MINUTE_MS, 30 * MINUTE_MS),
        (Stop.BURST, "minute_labels", 20, None, 61),
        (Stop.ONE_REPORTER, "reporter_share", 0.5, 0.7, 0.8),
        (Stop.ONE_MERCHANT, "merchant_share", 0.3, 0.5, 0.9),
        (Stop.POSITIVE_SHARE, "positive_share", 0.5, 0.03, 0.01),
        (Stop.POSITIVE_SHARE, "positive_share", 0.5, 0.96, 1.0),
    ],
)
def test_each_reason_stops_and_lets_go_on_further_in(
    stop: Stop, field: str, calm: float, between: float | None, over: float
) -> None:
    def told(value: float, stopped: dict[Stop, str]) -> dict[Stop, str]:
        return judge(Figures(**{**QUIET._asdict(), field: value}), SETTINGS, stopped)

    assert told(calm, {}) == {}
    stopped = told(over, {})
    assert list(stopped) == [stop]
    if between is not None:
        assert told(between, {}) == {}
        assert list(told(between, stopped)) == [stop]
    assert told(calm, stopped) == {}


def test_the_text_says_the_figures() -> None:
    told = judge(QUIET._replace(reporter=44, reporter_share=0.9), SETTINGS, {})
    assert told == {Stop.ONE_REPORTER: "90% of the newest labels come from analyst 44"}


FIGURES = st.builds(
    Figures,
    labels=st.integers(0, 200),
    quiet_ms=st.integers(0, 10**7),
    minute_labels=st.integers(0, 10**4),
    usual_labels=st.one_of(st.just(float("nan")), st.floats(0, 1e4)),
    reporter=st.integers(0, 5),
    reporter_share=st.floats(0, 1),
    merchant=st.integers(0, 5),
    merchant_share=st.floats(0, 1),
    positive_share=st.floats(0, 1),
)


@given(FIGURES)
def test_what_is_stopped_stays_so_while_nothing_changes(figures: Figures) -> None:
    first = judge(figures, SETTINGS, {})
    assert judge(figures, SETTINGS, first) == first
    everything = judge(figures, SETTINGS, dict.fromkeys(Stop, ""))
    assert set(first) <= set(everything)


def test_labels_that_dry_up() -> None:
    window = LabelWindow()
    window.see(labels(1), 0)
    now_ms = 0
    for _ in range(180):
        assert judge(window.figures(), SETTINGS, {}) == {}
        now_ms += 10_000
        window.see(NONE, now_ms)
    stopped = judge(window.figures(), SETTINGS, {})
    assert list(stopped) == [Stop.DRIED_UP]
    window.see(labels(1), now_ms)
    assert judge(window.figures(), SETTINGS, stopped) == {}


@pytest.mark.parametrize("jump_ms", [-(10**9), 10**9])
def test_a_jump_of_the_clock_is_no_outage(jump_ms: int) -> None:
    window = LabelWindow()
    window.see(labels(1), 10**12)
    window.see(NONE, 10**12 + jump_ms)
    assert window.figures().quiet_ms <= 10_000
    assert judge(window.figures(), SETTINGS, {}) == {}


def test_a_burst_and_its_end() -> None:
    window = LabelWindow()
    now_ms, stopped = 0, dict[Stop, str]()
    for minute in range(30):
        for _ in range(6):
            now_ms += 10_000
            at = now_ms // 10_000
            window.see(labels(1, reporters=at % 3, merchants=at, frauds=at % 2), now_ms)
        assert minute < 20 or judge(window.figures(), SETTINGS, stopped) == {}
    window.see(labels(70, reporters=[1, 2, 3]), now_ms)
    stopped = judge(window.figures(), SETTINGS, {})
    assert list(stopped) == [Stop.BURST]
    for _ in range(6):
        now_ms += 10_000
        window.see(NONE, now_ms)
    assert judge(window.figures(), SETTINGS, stopped) == {}
    assert window.figures().usual_labels == pytest.approx(8.2, abs=0.5)


def test_mostly_one_analyst_or_merchant() -> None:
    window = LabelWindow()
    window.see(labels(40, reporters=[7, 7, 7, 7, 8], merchants=3), 0)
    figures = window.figures()
    assert (figures.reporter, figures.reporter_share) == (7, 0.8)
    assert set(judge(figures, SETTINGS, {})) == {Stop.ONE_REPORTER, Stop.ONE_MERCHANT}
    window.forget()
    assert window.figures().labels == 0


def test_a_feed_that_speaks_for_many_is_no_single_reporter() -> None:
    window = LabelWindow()
    window.see(labels(50, reporters=7, source=CUSTOMER), 0)
    assert judge(window.figures(), SETTINGS, {}) == {}


def test_few_labels_neither_stop_nor_let_go_on() -> None:
    window = LabelWindow()
    window.see(labels(10, reporters=7, merchants=3, frauds=1.0), 0)
    assert judge(window.figures(), SETTINGS, {}) == {}
    before = {Stop.ONE_REPORTER: "as before"}
    assert list(judge(window.figures(), SETTINGS, before)) == [Stop.ONE_REPORTER]


def test_limits_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValueError, match="reporter_share"):
        GuardSettings(reporter_share=(0.3, 0.6))
    with pytest.raises(ValueError, match="band"):
        GuardSettings(positive_share_low=(0.5, 0.99))
    with pytest.raises(ValueError, match="share_labels_min"):
        GuardSettings(share_labels_min=0)
    with pytest.raises(ValueError, match="margin"):
        ReporterSettings(margin=0.6)


def shift_of(
    watch: ReporterWatch, count: int, share: float, poisoned: dict[int, float], seed: int
) -> dict[str, int]:
    """Let five analysts judge declined payments; return after how many of their own labels each
    suspected one was found."""
    random = np.random.default_rng(seed)
    found: dict[str, int] = {}
    said = dict.fromkeys(range(1, 6), 0)
    for number in range(count):
        reporter = 1 + number % 5
        said[reporter] += 1
        fraud = float(random.random() < poisoned.get(reporter, share))
        for alarm in watch.see(labels(1, reporters=reporter, frauds=fraud), [], number):
            found[alarm.subject] = said[reporter]
    return found


def test_an_analyst_who_waves_frauds_through_is_found() -> None:
    print(f"seed {SEED}")
    delays = []
    for seed in range(SEED, SEED + 20):
        found = shift_of(ReporterWatch(), 400, 0.6, {4: 0.02}, seed)
        assert set(found) == {"4"}
        delays.append(found["4"])
    print(f"found after {np.median(delays)} labels of their own")
    assert np.median(delays) <= 40


def test_honest_analysts_are_not_suspected() -> None:
    print(f"seed {SEED}")
    wrong = [shift_of(ReporterWatch(), 1_000, 0.6, {2: 0.5}, s) for s in range(SEED, SEED + 20)]
    assert sum(map(len, wrong)) <= 1


def test_frauds_that_only_one_reporter_sees_are_found_at_once() -> None:
    watch = ReporterWatch()
    for number in range(60):
        peer = labels(1, reporters=1 + number % 3, frauds=0.0, outcome=APPROVE)
        assert watch.see(peer, [], number) == []
    alarms = []
    for number in range(8):
        alarms += watch.see(labels(1, reporters=66, frauds=1.0, outcome=APPROVE), [], 100 + number)
    (alarm,) = alarms
    assert (alarm.code, alarm.subject) == ("LABELS_POISONED", "66")
    assert (alarm.after, alarm.before) == (1.0, 0.0)
    assert alarm.statistic >= alarm.limit


def test_a_reporter_whom_stronger_sources_contradict_is_found() -> None:
    watch = ReporterWatch()
    for number in range(80):
        watch.see(labels(1, reporters=1 + number % 3, frauds=float(number % 2)), [], number)
    label = np.zeros(1, LABEL)
    label["reporter"], label["source"] = 5, ANALYST
    alarms = []
    for number in range(6):
        alarms += watch.see(NONE, [Refusal(Cause.CONTRADICTORY, label[0])], number)
        overruling = labels(1, reporters=2, source=CHARGEBACK, frauds=float(number % 2))
        overruling.rows["overruled"] = 5
        alarms += watch.see(overruling, [Refusal(Cause.REPEATED, label[0])], number)
    assert [(alarm.code, alarm.subject) for alarm in alarms] == [("LABELS_DISPUTED", "5")]


def test_who_is_forgotten_says_nothing_of_others() -> None:
    watch = ReporterWatch(ReporterSettings(reporters_max=2))
    for number in range(30):
        watch.see(labels(1, reporters=1, frauds=0.0), [], number)
    watch.forget(1)
    for number in range(30):
        assert watch.see(labels(1, reporters=2, frauds=1.0), [], number) == []
    for reporter in (3, 4, 5):
        watch.see(labels(1, reporters=reporter), [], 0)
    assert len(watch._reporters) == 2


def test_a_watch_of_reporters_goes_through_arrays() -> None:
    print(f"seed {SEED}")
    watch = ReporterWatch()
    assert shift_of(watch, 60, 0.6, {4: 0.02}, SEED) == {}
    again = ReporterWatch.from_arrays(watch.to_arrays())
    found = [shift_of(each, 300, 0.6, {4: 0.02}, SEED + 1) for each in (watch, again)]
    assert found[0] == found[1]
    assert set(found[0]) == {"4"}
    for name, array in watch.to_arrays().items():
        assert array.tobytes() == again.to_arrays()[name].tobytes(), name
    nobody = ReporterWatch.from_arrays(ReporterWatch().to_arrays())
    assert nobody.see(NONE, [], 0) == []
    with pytest.raises(ValueError, match="reporters"):
        ReporterWatch.from_arrays({**watch.to_arrays(), "who": np.zeros((2, 3), np.int64)})
