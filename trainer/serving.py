"""What is served, what is tried beside it, and what to go back to; each change is an event.

Owns the order of a change: write, load again as a scorer would, judge, link, tell, watch. Must not
know how anything is learnt. Time that passes comes in, as ``Moment``.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.alarms import Alarm
from trainer.bundle import (
    Bundle,
    BundleError,
    Content,
    load_bundle,
    load_content,
    read_manifest,
    write_bundle,
)
from trainer.canary import CanarySettings, Slice, slice_of
from trainer.gates import Gate, GateSettings, alerts, judge
from trainer.labelled import Joined
from trainer.shelf import Shelf, read_canary
from trainer.telling import ALARMED, CANARY, PROMOTED, REFUSED, ROLLED_BACK, Teller
from trainer.trees import ModelError
from trainer.watch import BundleWatch, WatchSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LivePlaces:
    """The shelf, the keys, and the schema that vectors are of."""

    shelf: Shelf
    private_key: Path
    public_key: bytes
    schema: str


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """Gates before a bundle serves, the canary, and the watch while it does.

    After a bundle was taken back nothing new is served for ``hold_ms``.
    """

    gates: GateSettings
    canary: CanarySettings
    watch: WatchSettings
    hold_ms: int = 600_000


class Moment(NamedTuple):
    """The clock's ms since 1970, and ms that passed, by which things are waited for."""

    clock_ms: int
    passed_ms: int


class Standing(NamedTuple):
    """A bundle of the shelf: what evaluates, and what it is made of."""

    bundle: Bundle
    content: Content

    @property
    def version(self) -> str:
        """The bundle's id."""
        return self.bundle.model_version


class Trying(NamedTuple):
    """A bundle that decides for some customers."""

    standing: Standing
    customers: Slice
    watch: BundleWatch
    cause: str
    beside: str  # the champion's id when it began


class Serving:
    """The champion, its canary, and the bundle to go back to. Raises BundleError."""

    def __init__(
        self, places: LivePlaces, settings: ServingSettings, teller: Teller, at: Moment
    ) -> None:
        self._places = places
        self._settings = settings
        self._teller = teller
        self.champion = self._load(places.shelf.link)
        places.shelf.take_over(self.champion.version)
        self.safe = self.champion
        self.canary: Trying | None = None
        self._watch: BundleWatch | None = None
        self._held_until_ms = 0
        self._withdraw_leftover(at)

    @property
    def pinned(self) -> bool:
        """Whether a person said that what serves is to stay."""
        return self._places.shelf.pinned

    def is_held(self, at: Moment) -> bool:
        """Return whether a bundle was taken back a short while ago."""
        return at.passed_ms < self._held_until_ms

    def review_from(self) -> float:
        """Return the probability from which the champion alerts."""
        return self.champion.bundle.thresholds.review

    def draft(
        self, content: Content, traffic: NDArray[np.float32], old_frauds: NDArray[np.float32],
        more: Sequence[Gate], at: Moment,
    ) -> tuple[Standing, list[Gate]] | None:  # fmt: skip
        """Write a bundle and judge what a scorer would load; None, and an event, where it fails.

        ``more`` gates were met before. What passes stands on the shelf.
        """
        draft = self._places.shelf.folder / ".draft"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            bundle_id = write_bundle(draft, content, self._places.private_key)
            candidate = self._load(draft)
        except (BundleError, ModelError) as error:
            gates = [*more, Gate("integrity", 0.0, 1.0, False)]
            self._tell(REFUSED, "", at, str(error), gates=gates, learnt=_learnt(content))
            return None
        gates = [*more, Gate("integrity", 1.0, 1.0, True)]
        champion = self.champion.bundle
        gates += judge(candidate.bundle, champion, traffic, old_frauds, self._settings.gates)
        if not all(gate.passed for gate in gates):
            shutil.rmtree(draft, ignore_errors=True)
            reason = f"gate: {gates[-1].name}"
            self._tell(REFUSED, bundle_id, at, reason, gates=gates, learnt=_learnt(content))
            return None
        self._places.shelf.place(draft, bundle_id)
        return candidate, gates

    def promote(
        self, standing: Standing, gates: Sequence[Gate], cause: str, at: Moment,
        figures: Mapping[str, float],
    ) -> None:  # fmt: skip
        """Serve a bundle of the shelf to all, and watch it."""
        if self._watch is None or self._watch.is_proven(at.passed_ms):
            self.safe = self.champion
        self._places.shelf.serve(standing.version)
        self._tell(
            PROMOTED, standing.version, at, cause, gates=gates, figures=figures,
            learnt=_learnt(standing.content),
        )  # fmt: skip
        self.champion = standing
        self._watch = BundleWatch(self._settings.watch, at.passed_ms)
        self._tidy()

    def try_out(self, standing: Standing, gates: Sequence[Gate], cause: str, at: Moment) -> None:
        """Let a bundle of the shelf decide for a share of the customers, and watch it."""
        share = self._settings.canary.share
        self._places.shelf.try_out(standing.version, share)
        self._tell(
            CANARY, standing.version, at, cause, gates=gates, share=share,
            learnt=_learnt(standing.content),
        )  # fmt: skip
        watch = BundleWatch(self._settings.watch, at.passed_ms)
        customers = slice_of(standing.version, share)
        self.canary = Trying(standing, customers, watch, cause, self.champion.version)
        self._tidy()

    def roll_back(
        self, target: Standing, reason: str, at: Moment, *, gates: Sequence[Gate] = (),
        alarms: Sequence[Alarm] = (), figures: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        """Serve an earlier bundle again, to all."""
        self.end_canary(reason, at)
        self._places.shelf.serve(target.version)
        self._tell(
            ROLLED_BACK, target.version, at, reason, gates=gates, alarms=alarms, figures=figures
        )
        self.champion = self.safe = target
        self._watch = None

    def end_canary(self, reason: str, at: Moment, gates: Sequence[Gate] = ()) -> None:
        """Let the champion decide for all customers again, where there is a canary."""
        if self.canary is None:
            return
        self._places.shelf.end_trial()
        gone, self.canary = self.canary, None
        self._teller.tell(
            ROLLED_BACK, self.champion.version, at.clock_ms, f"canary: {reason}",
            previous=gone.standing.version, gates=gates,
        )  # fmt: skip

    def promote_canary(
        self, canary: Trying, standing: Standing, gates: Sequence[Gate], at: Moment,
        figures: Mapping[str, float],
    ) -> None:  # fmt: skip
        """Serve to all what passed its canary: that bundle, or one with the same layer in it."""
        seen = canary.watch.gates()
        self.promote(standing, [*gates, *seen], f"canary: {canary.cause}", at, figures)
        self._places.shelf.end_trial()  # only now, so that its customers see no older one between
        self.canary = None

    def see(self, served: NDArray[Any]) -> None:
        """Take decisions SERVED[m] as they were made."""
        tried = np.zeros(len(served), np.bool_)
        if self.canary is not None:
            tried = self.canary.customers.holds_each(served["customer"])
            self._show(self.canary.watch, self.canary.standing, served[tried])
        if self._watch is not None:
            self._show(self._watch, self.champion, served[~tried])

    def _show(self, watch: BundleWatch, standing: Standing, served: NDArray[Any]) -> None:
        own = np.isin(served["model"], (b"", standing.version.encode()))
        if own.any():
            watch.see(served[own], standing.bundle.thresholds.review)

    def see_labels(self, joined: Joined) -> NDArray[np.bool_]:
        """Take confirmed labels; return what the champion does with each, bool[m]."""
        champion = alerts(self.champion.bundle, joined.vectors)
        if len(joined) and self._watch is not None:
            before = alerts(self.safe.bundle, joined.vectors)
            self._watch.see_labels(champion, before, joined.is_fraud)
        if len(joined) and self.canary is not None:
            own = alerts(self.canary.standing.bundle, joined.vectors)
            self.canary.watch.see_labels(own, champion, joined.is_fraud)
        return champion

    def check(self, at: Moment, figures: Mapping[str, float]) -> bool:
        """Take back what is spoken against; return whether the champion was.

        A pinned one stays, whatever is seen: that is told, once.
        """
        if self.pinned:
            self.end_canary("what serves is pinned", at)
        canary = self.canary
        if canary is not None and (failed := canary.watch.failed(at.passed_ms)):
            self._hold(at)
            self.end_canary("; ".join(failed), at, canary.watch.gates())
        watch = self._watch
        if watch is None or not (failed := watch.failed(at.passed_ms)):
            return False
        reason, gates = "; ".join(failed), watch.gates()
        if self.pinned:
            self._watch = None
            self._tell(ALARMED, self.champion.version, at, f"pinned: {reason}", gates=gates)
            return False
        self._hold(at)
        self.roll_back(self.safe, reason, at, gates=gates, figures=figures)
        return True

    def finished_canary(self, at: Moment) -> Trying | None:
        """Return the canary where it was seen for long enough."""
        if self.canary is None:
            return None
        watch = self.canary.watch
        waited_ms = at.passed_ms - watch.began_ms
        is_over = self._settings.canary.is_over(watch.decisions, waited_ms)
        return self.canary if is_over else None

    def follow(self, at: Moment) -> bool:
        """Go on from what a person serves, and watch it; return whether it is another bundle."""
        shelf = self._places.shelf
        if shelf.served() == self.champion.version:
            return False
        before, self.champion = self.champion, self._load(shelf.link)
        shelf.take_over(self.champion.version)
        if self._watch is None or self._watch.is_proven(at.passed_ms):
            self.safe = before
        self._watch = BundleWatch(self._settings.watch, at.passed_ms)
        self.end_canary("another bundle was served by hand", at)
        _log.info("going on from %s", self.champion.version)
        return True

    def trust(self) -> None:
        """Watch the champion no longer: a person went back to it."""
        self.safe, self._watch = self.champion, None

    def watch_again(self, previous: str, at: Moment) -> None:
        """After a restart, watch what was promoted over ``previous``, where that is still here."""
        if previous == self.champion.version or previous not in self._places.shelf.ids():
            return
        try:
            self.safe = self._load(self._places.shelf.path(previous))
        except BundleError as error:
            _log.warning("nothing to go back to: %s", error)
            return
        self._watch = BundleWatch(self._settings.watch, at.passed_ms)

    def before(self, position: int) -> Standing:
        """Return the newest bundle that learnt from nothing at ``position`` or after it.

        The champion, where it is one; else one of the shelf that has the champion's base; the base
        itself at the last. Raises BundleError where that is gone.
        """
        if learnt_until(self.champion.content.facts) <= position:
            return self.champion
        shelf, root = self._places.shelf, self.root
        for bundle_id in reversed(shelf.ids()):
            manifest = read_manifest(shelf.path(bundle_id), self._places.public_key)
            if learnt_until(manifest) <= position and root_of(manifest, bundle_id) == root:
                return self._load(shelf.path(bundle_id))
        return self._load(shelf.path(root))

    @property
    def root(self) -> str:
        """The bundle that the champion's layers were put on top of."""
        return root_of(self.champion.content.facts, self.champion.version)

    def _withdraw_leftover(self, at: Moment) -> None:
        """After a restart: end a canary of before, as nobody watched it since."""
        tried = read_canary(self._places.shelf.link)
        if tried is None:
            return
        self._places.shelf.end_trial()
        self._teller.tell(
            ROLLED_BACK, self.champion.version, at.clock_ms, "canary: the trainer began anew",
            previous=tried.bundle_id,
        )  # fmt: skip

    def _hold(self, at: Moment) -> None:
        self._held_until_ms = at.passed_ms + self._settings.hold_ms

    def _tidy(self) -> None:
        needed = {self.safe.version, self.champion.version, self.root}
        if self.canary is not None:
            needed.add(self.canary.standing.version)
        self._places.shelf.tidy(needed)

    def _load(self, path: Path) -> Standing:
        places = self._places
        schema, key = places.schema, places.public_key
        return Standing(
            load_bundle(path, schema_version=schema, public_key=key),
            load_content(path, schema_version=schema, public_key=key),
        )

    def _tell(self, change: Any, version: str, at: Moment, reason: str, **more: Any) -> None:
        previous = self.champion.version
        self._teller.tell(change, version, at.clock_ms, reason, previous=previous, **more)


def learnt_until(facts: Mapping[str, Any]) -> int:
    """Return the position of the log up to which a bundle learnt from labels, 0 for none."""
    return int(facts.get("learnt", {}).get("position", 0))


def root_of(facts: Mapping[str, Any], bundle_id: str) -> str:
    """Return the bundle that the layers were put on top of; a bundle without is its own."""
    return str(facts.get("learnt", {}).get("root", bundle_id))


def _learnt(content: Content) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = content.facts.get("learnt")
    return found
