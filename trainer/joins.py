"""Owns the join of late labels to logged decisions: which label counts, and why another does not.

Sources are kept apart. Of one transaction each source has one say; where sources differ the
stronger one stands (STRENGTH), whichever came first:
- the same verdict of the same source again is REPEATED;
- the other verdict of the same source counts where the same reporter gives it with a later time
  (a correction), else it is CONTRADICTORY;
- a verdict against that of a stronger source is CONTRADICTORY;
- a verdict against that of weaker sources counts, and the row says that it overrules them;
- what is unclear or retracted unsays what the same reporter said, and is no lesson itself.

A label without a decision waits for a while, since the two come by different topics. How long is
counted in time that passed between calls, each step bounded, so that no jump of the clock refuses
everything at once or keeps anything for ever. Must not know logs, learners or protobuf's bytes.
After a restart the ring is filled by reading the log again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.decision_ring import APPROVED, PASSED, SAID, SOURCES, DecisionRing
from trainer.elapsed import Elapsed
from trainer.labelled import (
    DAY_MS,
    FRAUD,
    JOINED,
    LEGITIMATE,
    PRESUMED,
    STRENGTH,
    UNSAYING,
    Cause,
    Joined,
    Refusal,
    chosen,
    stacked,
)
from trainer.traffic import Sample

# Upper ends of the bins of the delay between payment and label; the last bin has none.
DELAY_EDGES_MS = (
    *(minutes * 60_000 for minutes in (1, 5, 15, 60, 360)),
    *(days * DAY_MS for days in (1, 3, 7, 14, 30, 60, 120)),
)


# Whether a row overrules, and whom.
NOBODY = (False, 0)


class Taken(NamedTuple):
    """What a call made of its events; ``unsaid`` are (transaction, reporter), before ``joined``."""

    joined: Joined
    refused: list[Refusal]
    unsaid: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class JoinSettings:
    """Bounds in size and age. Raises ValueError where one is not positive.

    ``passed_max`` ids of decisions that left memory are remembered. ``step_max_ms`` is the most
    that passes between two calls, whatever the clock says.
    """

    decisions_max: int = 131_072
    passed_max: int = 1_048_576
    waiting_max: int = 4_096
    waiting_ms: int = 60_000
    age_max_ms: int = 120 * DAY_MS
    step_max_ms: int = 10_000

    def __post_init__(self) -> None:
        """Refuse bounds that hold nothing."""
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive")


@dataclass(slots=True)
class Counts:
    """Counters since the start.

    ``labelled`` decisions of ``decisions`` have a label; ``joined`` int64[SOURCES] rows;
    ``delays`` int64[SOURCES, len(DELAY_EDGES_MS) + 1]; ``early`` labels carry a time before their
    payment's; ``repeated_decisions`` were read again, ``shared_ids`` by another customer.
    """

    decisions: int = 0
    repeated_decisions: int = 0
    shared_ids: int = 0
    labelled: int = 0
    early: int = 0
    joined: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SOURCES, np.int64))
    delays: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((SOURCES, len(DELAY_EDGES_MS) + 1), np.int64)
    )
    refused: dict[Cause, int] = field(default_factory=lambda: dict.fromkeys(Cause, 0))

    @property
    def coverage(self) -> float:
        """The share of decisions that have a label; 0 where there are none."""
        return self.labelled / max(self.decisions, 1)


# Fetches a decision that memory does not hold, from the log say: row of DECISION and float32[n].
Recall = Callable[[int], tuple[np.void, NDArray[np.float32]] | None]


class _Waiting(NamedTuple):
    since_ms: int
    labels: list[np.void]


class Joins:
    """Joins labels to decisions. ``recall`` finds decisions that are no longer in memory."""

    def __init__(
        self, n_features: int, settings: JoinSettings | None = None, recall: Recall | None = None
    ) -> None:
        self.settings = settings = settings or JoinSettings()
        self.counts = Counts()
        self.ring = DecisionRing(settings.decisions_max, settings.passed_max, n_features)
        self._recall = recall
        self._waiting: dict[int, _Waiting] = {}
        self._waiting_count = 0
        self._elapsed = Elapsed(settings.step_max_ms)
        self._rows: list[tuple[Any, ...]] = []
        self._vectors: list[NDArray[np.float32]] = []
        self._refused: list[Refusal] = []
        self._unsaid: list[tuple[int, int]] = []

    @property
    def waiting(self) -> int:
        """How many labels wait for their decision."""
        return self._waiting_count

    def take_decisions(
        self, rows: NDArray[Any], vectors: NDArray[np.float32], now_ms: int
    ) -> Taken:
        """Keep decisions DECISION[m] with float32[m, n]; join the labels that waited for them."""
        self._pass_time(now_ms)
        for row, vector in zip(rows, vectors, strict=True):
            self._keep(row, vector)
        return self._taken()

    def take_labels(self, labels: NDArray[Any], now_ms: int) -> Taken:
        """Join labels LABEL[m] in their order; one without a decision waits."""
        self._pass_time(now_ms)
        for label in labels:
            self._place(label)
        return self._taken()

    def pass_time(self, now_ms: int) -> Taken:
        """Give up the labels that have waited for too long. For calls without events."""
        self._pass_time(now_ms)
        return self._taken()

    def unlabelled(self, count: int, age_ms: int, random: np.random.Generator) -> Joined:
        """Return up to ``count`` random decisions of which nothing was heard for ``age_ms``.

        They are presumed legitimate (source PRESUMED): most are.
        """
        slots = self.ring.kept()
        old = self._elapsed.now_ms - self.ring.read_ms[slots] >= age_ms
        unsaid = ~(self.ring.said["verdict"][slots] != 0).any(axis=1)
        slots = slots[old & unsaid & ~self.ring.shared[slots]]
        # In the order in which they were read, wherever the ring begins.
        some = np.sort(random.permutation(len(slots))[:count])
        for slot in slots[some].tolist():
            presumed: Any = np.array((0, self._event_ms(slot), LEGITIMATE), SAID)[()]
            self._emit(slot, PRESUMED, presumed, NOBODY)
        return self._taken().joined

    def traffic(
        self, learnt: int, held: int, newest: int, age_ms: int, random: np.random.Generator
    ) -> Sample:
        """Return up to so many decisions for each of a sample's parts; none is learnt and held.

        Learnt from are random ones older than the newest by ``age_ms``, or else of the older half:
        the rest is too young for anybody to have said which of them are fraud, and a new attack
        would be taken as usual. Thresholds are for what comes next, so held are the newest.
        Payments judged good count in both: most were judged because they were alerted, and without
        them alerts would seem fewer. The age is by the time of the events, so a restart that reads
        the same log finds the same.
        """
        slots, vectors = self.ring.kept(), self.ring.vectors
        said, times = self.ring.said["verdict"][slots], self.ring.rows["event_time_ms"][slots]
        is_fraud, is_judged = (said == FRAUD).any(axis=1), (said != 0).any(axis=1)
        places = np.arange(len(slots))
        old = times.max(initial=0) - times >= age_ms
        if 2 * old.sum() <= len(slots):
            old = places < (len(slots) + 1) // 2
        few = random.permutation(places[old & ~is_fraud])
        few = np.sort(few[: min(learnt, len(few) // 2)])
        is_held = ~is_fraud
        is_held[few] = False
        late = places[is_held][max(0, int(is_held.sum()) - held) :]
        return Sample(
            vectors[slots[few]],
            vectors[slots[late]],
            is_judged[late],
            self.ring.rows["outcome"][slots[late]] != APPROVED,
            vectors[slots[max(0, len(slots) - newest) :]],
        )

    def forget(
        self,
        *,
        reporter: int | None = None,
        from_ms: int | None = None,
        until_ms: int | None = None,
    ) -> Joined:
        """Unsay what a reporter said, or what was said from a time until another, or both.

        So that what others say of the same payments is heard. Returns a row for each payment of
        which others had spoken: what stands now.
        """
        said = self.ring.said
        before = (said["verdict"] != 0).any(axis=1)
        gone = (said["verdict"] != 0) & chosen(said, reporter, from_ms, until_ms)
        said[gone] = np.zeros((), said.dtype)
        left = (said["verdict"] != 0).any(axis=1)
        self.counts.labelled -= int((before & ~left).sum())
        for slot in np.flatnonzero(gone.any(axis=1) & left).tolist():
            source = max(np.flatnonzero(said["verdict"][slot]).tolist(), key=STRENGTH.__getitem__)
            self._emit(slot, source, said[slot][source], NOBODY)
        return self._taken().joined

    def _pass_time(self, now_ms: int) -> None:
        self._elapsed.advance(now_ms)
        while self._waiting:
            oldest = next(iter(self._waiting))
            waited_ms = self._elapsed.now_ms - self._waiting[oldest].since_ms
            if waited_ms < self.settings.waiting_ms:
                return
            self._give_up(oldest)

    def _give_up(self, transaction: int) -> None:
        for label in self._let_go(transaction):
            self._refuse(Cause.UNKNOWN_TRANSACTION, label)

    def _let_go(self, transaction: int) -> list[np.void]:
        waited = self._waiting.pop(transaction, _Waiting(0, [])).labels
        self._waiting_count -= len(waited)
        return waited

    def _keep(self, row: np.void, vector: NDArray[np.float32]) -> None:
        transaction = int(row["transaction"])
        slot = self.ring.find(transaction)
        if slot == PASSED:
            self.counts.repeated_decisions += 1
        elif slot >= 0:
            self.counts.repeated_decisions += 1
            if self.ring.rows["customer"][slot] != row["customer"] and not self.ring.shared[slot]:
                self.counts.shared_ids += 1
                self.ring.shared[slot] = True
        else:
            self.counts.decisions += 1
            self._put(row, vector)

    def _put(self, row: np.void, vector: NDArray[np.float32]) -> int:
        slot = self.ring.put(row, vector, self._elapsed.now_ms)
        for label in self._let_go(int(row["transaction"])):
            self._join(slot, label)
        return slot

    def _unsay(self, label: np.void) -> None:
        """Drop what the same reporter said of a payment, wherever it is by now."""
        transaction, reporter = int(label["transaction"]), int(label["reporter"])
        self._unsaid.append((transaction, reporter))
        names = JOINED.names or ()
        at, by = names.index("transaction"), names.index("reporter")
        kept = [not (row[at] == transaction and row[by] == reporter) for row in self._rows]
        self._rows = [*compress(self._rows, kept)]
        self._vectors = [*compress(self._vectors, kept)]
        waited = [e for e in self._let_go(transaction) if e["reporter"] != reporter]
        for each in waited:
            self._wait(transaction, each)
        slot = self.ring.find(transaction)
        if slot < 0 or not (said := self.ring.said[slot])["verdict"].any():
            return
        said[(said["verdict"] != 0) & (said["reporter"] == reporter)] = np.zeros((), SAID)
        left = np.flatnonzero(said["verdict"]).tolist()
        self.counts.labelled -= not left
        if left:
            source = max(left, key=STRENGTH.__getitem__)
            self._emit(slot, source, said[source], NOBODY)

    def _place(self, label: np.void) -> None:
        if label["verdict"] in UNSAYING and 0 < label["source"] < SOURCES:
            self._unsay(label)
            return
        if label["verdict"] not in (FRAUD, LEGITIMATE) or not 0 < label["source"] < SOURCES:
            self._refuse(Cause.INVALID, label)
            return
        transaction = int(label["transaction"])
        slot = self.ring.find(transaction)
        if slot < 0 and self._recall and (found := self._recall(transaction)):
            slot = self._put(*found)
        if slot == PASSED:
            self._refuse(Cause.TOO_OLD, label)
        elif slot >= 0:
            self._join(slot, label)
        else:
            self._wait(transaction, label)

    def _wait(self, transaction: int, label: np.void) -> None:
        self._waiting.setdefault(transaction, _Waiting(self._elapsed.now_ms, [])).labels.append(
            label.copy()
        )
        self._waiting_count += 1
        while self._waiting_count > self.settings.waiting_max:
            self._give_up(next(iter(self._waiting)))

    def _join(self, slot: int, label: np.void) -> None:
        cause, against = self._judge(slot, label)
        if cause:
            self._refuse(cause, label)
            return
        said, source = self.ring.said[slot], int(label["source"])
        self._count(slot, label, first=not said["verdict"].any())
        overruled = (bool(against), int(said["reporter"][against[-1]]) if against else 0)
        said[source] = label["reporter"], label["label_time_ms"], label["verdict"]
        self._emit(slot, source, said[source], overruled)

    def _judge(self, slot: int, label: np.void) -> tuple[Cause | None, list[int]]:
        """Return why a label is not used, or None, and the sources that it overrules."""
        if not self._same_tenant(slot, label):
            return Cause.OTHER_TENANT, []
        age_ms = max(
            int(label["label_time_ms"]) - self._event_ms(slot),
            self._elapsed.now_ms - int(self.ring.read_ms[slot]),
        )
        if age_ms > self.settings.age_max_ms:
            return Cause.TOO_OLD, []
        said, source = self.ring.said[slot], int(label["source"])
        own = said[source]
        if own["verdict"] == label["verdict"]:
            return Cause.REPEATED, []
        corrects = own["verdict"] != 0 and (
            own["reporter"] == label["reporter"] and label["label_time_ms"] > own["label_time_ms"]
        )
        if own["verdict"] != 0 and not corrects:
            return Cause.CONTRADICTORY, []
        against = [s for s in range(SOURCES) if said["verdict"][s] not in (0, label["verdict"])]
        if any(STRENGTH[each] > STRENGTH[source] for each in against):
            return Cause.CONTRADICTORY, []
        return None, sorted(against, key=STRENGTH.__getitem__)

    def _same_tenant(self, slot: int, label: np.void) -> bool:
        """Return whether the label can only be about this decision.

        Ids are chosen by callers, and no caller has a name in the contract yet: what is known of
        an id's owner is the customer. Of an id that two customers have, a label must say whose.
        """
        owner, stated = int(self.ring.rows["customer"][slot]), int(label["customer"])
        if stated == 0 or owner == 0:
            return not self.ring.shared[slot]
        return stated == owner

    def _event_ms(self, slot: int) -> int:
        return int(self.ring.rows["event_time_ms"][slot])

    def _count(self, slot: int, label: np.void, *, first: bool) -> None:
        delay_ms = int(label["label_time_ms"]) - self._event_ms(slot)
        self.counts.early += delay_ms < 0
        self.counts.labelled += first
        self.counts.joined[label["source"]] += 1
        self.counts.delays[label["source"], np.searchsorted(DELAY_EDGES_MS, delay_ms)] += 1

    def _refuse(self, cause: Cause, label: np.void) -> None:
        self.counts.refused[cause] += 1
        self._refused.append(Refusal(cause, label.copy()))

    def _emit(self, slot: int, source: int, said: Any, overruled: tuple[bool, int]) -> None:
        told = (said["label_time_ms"], said["reporter"], said["verdict"], source, *overruled)
        self._rows.append((*self.ring.rows[slot].item(), *told))
        # Copied now: the slot may be another decision's before the call ends.
        self._vectors.append(self.ring.vectors[slot].copy())

    def _taken(self) -> Taken:
        joined = stacked(self._rows, self._vectors, self.ring.vectors.shape[1])
        refused, unsaid = self._refused, self._unsaid
        self._rows, self._vectors, self._refused, self._unsaid = [], [], [], []
        return Taken(joined, refused, unsaid)
