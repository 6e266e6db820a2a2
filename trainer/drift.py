"""Owns the watch for drift by River's detectors: on inputs and on scores; and on missed frauds.

Each watched figure has its detectors (WATCHES). River's state is not kept as objects: a watch
remembers the newest values that its detector has seen, and a restored one sees them again. The
share of confirmed frauds that the champion missed has few labels, so an e-detector watches it.
Must not know what becomes of an alarm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import drift

from trainer.alarms import Alarm
from trainer.edetector import EDetector
from trainer.labelled import Joined

INPUTS_MAX = 32


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """What is watched how closely. Raises ValueError for figures out of range.

    Of traffic one row in ``input_every`` is looked at. ADWIN's ``delta`` and KSWIN's ``alpha`` are
    probabilities of a false alarm, a look; PageHinkley's ``threshold`` is in standard deviations
    of the first ``warm_rows`` values. ``values_max`` is how many values a detector remembers. The
    baseline of missed frauds is learnt from ``baseline_frauds`` unless it is given.
    """

    input_every: int = 10
    delta: float = 1e-6
    alpha: float = 1e-7
    threshold: float = 60.0
    warm_rows: int = 500
    values_max: int = 8_192
    baseline_frauds: int = 100
    missed_run_length: float = 1_000.0

    def __post_init__(self) -> None:
        """Refuse figures that a detector would not take."""
        if not (0.0 < self.delta < 1.0 and 0.0 < self.alpha < 1.0 and self.threshold > 0.0):
            raise ValueError("delta and alpha lie between 0 and 1, threshold above 0")
        if min(self.input_every, self.baseline_frauds) < 1 or self.warm_rows < 2:
            raise ValueError("input_every and baseline_frauds must be positive, warm_rows 2")
        if self.values_max < 2 * self.warm_rows or self.missed_run_length <= 1.0:
            raise ValueError("values_max must be twice warm_rows, missed_run_length above 1")


def _adwin(settings: DriftSettings) -> Any:
    return drift.ADWIN(delta=settings.delta)


def _page_hinkley(settings: DriftSettings) -> Any:
    return drift.PageHinkley(threshold=settings.threshold, delta=0.05, mode="both")


def _kswin(settings: DriftSettings) -> Any:
    # Each look costs 0.5 ms, and sees what leaves the mean alone.
    return drift.KSWIN(alpha=settings.alpha, window_size=300, stat_size=100, seed=1)


# Detector by name: how it is made, and of how many values it sees one.
WATCHES: Mapping[str, tuple[Callable[[DriftSettings], Any], int]] = {
    "ADWIN": (_adwin, 1),
    "PageHinkley": (_page_hinkley, 1),
    "KSWIN": (_kswin, 20),
}


class Watch:
    """One figure under one of River's detectors.

    Values are standardised by the first ``warm_rows``, which are taken to be as things should be.
    After an alarm it begins anew: what is, is then the norm.
    """

    def __init__(self, subject: str, method: str, settings: DriftSettings) -> None:
        self.subject, self.method = subject, method
        self._settings = settings
        self._make, self._every = WATCHES[method]
        self._values = np.zeros(settings.values_max)
        self._times_ms = np.zeros(settings.values_max, np.int64)
        self._begin(0)

    def _begin(self, seen: int) -> None:
        self._count, self._seen = 0, seen
        self._mean, self._spread = 0.0, 1.0
        self._detector = self._make(self._settings)

    def restart(self) -> None:
        """Begin anew: what comes now is the norm."""
        self._begin(self._seen)

    def update(self, value: float, time_ms: int) -> Alarm | None:
        """Take one value; one that is not finite is passed over. Return an alarm, or None."""
        self._seen += 1
        if self._seen % self._every or not np.isfinite(value):
            return None
        if self._count == self._settings.values_max:
            self._shorten()
        self._values[self._count], self._times_ms[self._count] = value, time_ms
        self._count += 1
        if not self._look(value):
            return None
        alarm = self._alarm(time_ms)
        self._begin(self._seen)
        return alarm

    def _look(self, value: float) -> bool:
        """Show the detector the newest value, or all of them once they are enough."""
        if self._count > self._settings.warm_rows:
            self._detector.update((value - self._mean) / self._spread)
            return bool(self._detector.drift_detected)
        if self._count == self._settings.warm_rows:
            self._warm()
        return False

    def _warm(self) -> None:
        values = self._values[: self._settings.warm_rows]
        self._mean, self._spread = float(values.mean()), float(values.std()) or 1.0
        for value in ((values - self._mean) / self._spread).tolist():
            self._detector.update(value)

    def _shorten(self) -> None:
        """Drop the older half, and let a new detector see the newer one."""
        kept = self._count // 2
        values = self._values[self._count - kept : self._count].copy()
        times_ms = self._times_ms[self._count - kept : self._count].copy()
        self._replay(values, times_ms, self._seen)

    def _replay(self, values: NDArray[np.float64], times_ms: NDArray[np.int64], seen: int) -> None:
        self._begin(seen)
        for value, time_ms in zip(values.tolist(), times_ms.tolist(), strict=True):
            self._values[self._count], self._times_ms[self._count] = value, time_ms
            self._count += 1
            self._look(value)

    def _alarm(self, now_ms: int) -> Alarm:
        """Split the values where the two sides' means differ most, for their variance."""
        values = self._values[: self._count]
        sums, n = np.cumsum(values), len(values)
        first = np.arange(1, n)
        before, after = sums[:-1] / first, (sums[-1] - sums[:-1]) / (n - first)
        gain = (before - after) ** 2 * first * (n - first) / n
        at = int(gain.argmax())
        return Alarm(
            code="DRIFT",
            subject=self.subject,
            method=self.method,
            since_ms=int(self._times_ms[at + 1]),
            now_ms=now_ms,
            before=float(before[at]),
            after=float(after[at]),
            rows=n - 1 - at,
            # The shift in standard errors: River keeps its own statistic to itself.
            statistic=float(np.sqrt(gain[at]) / (values.std() or 1.0)),
            limit={"ADWIN": self._settings.delta, "KSWIN": self._settings.alpha}.get(
                self.method, self._settings.threshold
            ),
        )

    def to_array(self) -> NDArray[np.float64]:
        """Return the remembered values and times as float64[2, 1 + c]; the first column counts."""
        state = np.empty((2, 1 + self._count))
        state[:, 0] = self._seen, self._count
        state[0, 1:] = self._values[: self._count]
        state[1, 1:] = self._times_ms[: self._count]
        return state

    def restore(self, state: NDArray[np.float64]) -> None:
        """Become the watch whose ``to_array`` this is. Raises ValueError for one too large."""
        if state.ndim != 2 or len(state) != 2 or state.shape[1] > 1 + self._settings.values_max:
            raise ValueError(f"the state has shape {state.shape}")
        self._replay(state[0, 1:], state[1, 1:].astype(np.int64), int(state[0, 0]))


class MissedWatch:
    """Watches which share of confirmed frauds the champion let pass.

    ``baseline`` is that share when all is well, from the bundle's facts say; None learns it from
    the first frauds, and adds a standard error.
    """

    def __init__(self, settings: DriftSettings, baseline: float | None = None) -> None:
        self._settings = settings
        self._first: list[bool] = []
        self._detector = (
            None if baseline is None else EDetector(baseline, settings.missed_run_length)
        )

    def update(self, missed: bool, time_ms: int) -> Alarm | None:
        """Take one confirmed fraud."""
        if self._detector is None:
            self._learn(missed)
            return None
        rise = self._detector.update(missed, time_ms)
        if rise is None:
            return None
        self._detector.restart()
        return Alarm(
            code="MISSED_FRAUD",
            subject="missed",
            method="e-detector",
            since_ms=rise.since_ms,
            now_ms=time_ms,
            before=rise.before,
            after=rise.after,
            rows=rise.rows,
            statistic=rise.e_value,
            limit=self._settings.missed_run_length,
        )

    def _learn(self, missed: bool) -> None:
        self._first.append(missed)
        if (n := len(self._first)) < self._settings.baseline_frauds:
            return
        share = (sum(self._first) + 1.0) / (n + 2.0)
        error = float(np.sqrt(share * (1.0 - share) / n))
        self._detector = EDetector(min(share + error, 1.0), self._settings.missed_run_length)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the detector's arrays, or ``first`` bool[m] while the baseline is learnt."""
        if self._detector is None:
            return {"first": np.array(self._first, np.bool_)}
        return self._detector.to_arrays()

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Become the watch whose ``to_arrays`` these are. Raises ValueError."""
        if "first" in arrays:
            self._first, self._detector = arrays["first"].tolist(), None
        else:
            self._detector = EDetector.from_arrays(arrays)


class DriftWatch:
    """All that is watched: some inputs and the score under each of WATCHES, and missed frauds.

    ``inputs`` maps the name of a feature to its column, INPUTS_MAX at most.
    """

    def __init__(
        self,
        inputs: Mapping[str, int],
        settings: DriftSettings | None = None,
        missed_baseline: float | None = None,
    ) -> None:
        if len(inputs) > INPUTS_MAX:
            raise ValueError(f"{len(inputs)} inputs; {INPUTS_MAX} are watched at most")
        self._settings = settings = settings or DriftSettings()
        self._columns = np.array(list(inputs.values()), np.int64)
        names = [*inputs, "score"]
        self._watches = [[Watch(name, each, settings) for each in WATCHES] for name in names]
        self._missed = MissedWatch(settings, missed_baseline)
        self._rows = 0

    def see_traffic(
        self,
        vectors: NDArray[np.float32],
        logits: NDArray[np.float64],
        event_time_ms: NDArray[np.int64],
    ) -> list[Alarm]:
        """Take decisions float32[m, n] with logits float64[m] and int64[m] in log order."""
        every = self._settings.input_every
        some = np.arange((-self._rows) % every, len(vectors), every)
        self._rows += len(vectors)
        values = np.column_stack([vectors[np.ix_(some, self._columns)], logits[some]]).tolist()
        return [
            alarm
            for row, time_ms in zip(values, event_time_ms[some].tolist(), strict=True)
            for value, watches in zip(row, self._watches, strict=True)
            for watch in watches
            if (alarm := watch.update(value, time_ms))
        ]

    def see_labels(self, joined: Joined, missed: Sequence[bool]) -> list[Alarm]:
        """Take joined rows, and whether the champion let each pass, which counts for frauds."""
        told = zip(joined.rows, joined.is_fraud.tolist(), missed, strict=True)
        alarms = [
            self._missed.update(bool(let_pass), int(row["label_time_ms"]))
            for row, is_fraud, let_pass in told
            if is_fraud
        ]
        return [alarm for alarm in alarms if alarm]

    def serve_another(self, missed_baseline: float | None = None) -> None:
        """Begin anew with what depends on the champion: another one serves from now on."""
        self._missed = MissedWatch(self._settings, missed_baseline)
        self.restart_scores()

    def restart_scores(self) -> None:
        """Begin anew with the score alone: another model gives it."""
        for watch in self._watches[-1]:
            watch.restart()

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the whole state by names."""
        arrays: dict[str, NDArray[Any]] = {"rows": np.array([self._rows], np.int64)}
        for watch in self._all():
            arrays[f"{watch.method}/{watch.subject}"] = watch.to_array()
        missed = self._missed.to_arrays()
        return arrays | {f"missed/{name}": array for name, array in missed.items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Become the watch whose ``to_arrays`` these are; what it did not watch begins anew."""
        self._rows = int(arrays["rows"][0])
        for watch in self._all():
            if (name := f"{watch.method}/{watch.subject}") in arrays:
                watch.restore(arrays[name])
        missed = {n.removeprefix("missed/"): a for n, a in arrays.items() if n[:7] == "missed/"}
        self._missed.restore(missed)

    def _all(self) -> list[Watch]:
        return [watch for watches in self._watches for watch in watches]
