"""Owns where bundles stand: a directory of them, a link to the one that is served, and the canary.

Replacing the link is one step, so a scorer sees the old bundle or the new one. The canary, which
decides for a share of customers, is named in a file beside the link, replaced in one step too. Must
not know how a bundle is made.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from trainer.bundle import MANIFEST, BundleError

PIN = "pinned"
CANARY_BYTES_MAX = 4_096


class Tried(NamedTuple):
    """The bundle that is tried, where it stands, and the share of customers it decides for."""

    bundle_id: str
    path: Path
    share: float


def canary_path(link: Path) -> Path:
    """Return the file that names the canary beside what is served at ``link``."""
    return link.with_name(f"{link.name}.canary")


def read_canary(link: Path) -> Tried | None:
    """Return the canary beside ``link``, None where there is none. Raises BundleError."""
    path = canary_path(link)
    try:
        with path.open("rb") as file:
            data = file.read(CANARY_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    try:
        told = json.loads(data)
        tried = Tried(str(told["bundle"]), Path(told["path"]), float(told["share"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} names no canary: {error}") from error
    if not 0.0 < tried.share <= 1.0:
        raise BundleError(f"{path}: a share of {tried.share}")
    return tried


class Shelf:
    """Bundles under ``folder`` by their ids; ``link`` is what scorers read.

    ``kept`` bundles stay beside the served one. Raises BundleError where files refuse.
    """

    def __init__(self, folder: Path, link: Path, kept: int = 20) -> None:
        self.folder = folder
        self.link = link
        self._kept = kept

    def take_over(self, bundle_id: str) -> None:
        """Put a bundle that stands at the link itself onto the shelf, and link to it."""
        if self.link.is_symlink() or not self.link.exists():
            return
        with _refusals(f"cannot move {self.link}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.path(bundle_id).exists():
                shutil.rmtree(self.link)
            else:
                self.link.rename(self.path(bundle_id))
        self.serve(bundle_id)

    def served(self) -> str | None:
        """Return the id of the bundle that is served."""
        return self.link.resolve().name if self.link.is_symlink() else None

    def serve(self, bundle_id: str) -> None:
        """Serve a bundle of the shelf from now on."""
        target = self.path(bundle_id)
        if not (target / MANIFEST).exists():
            raise BundleError(f"there is no bundle {bundle_id} in {self.folder}")
        draft = self.link.with_name(f".{self.link.name}.{os.getpid()}")
        with _refusals(f"cannot link {self.link}"):
            draft.unlink(missing_ok=True)
            draft.symlink_to(target.absolute())
            draft.replace(self.link)

    def try_out(self, bundle_id: str, share: float) -> None:
        """Let a bundle of the shelf decide for a share of customers from now on."""
        target = self.path(bundle_id).absolute()
        if not (target / MANIFEST).exists():
            raise BundleError(f"there is no bundle {bundle_id} in {self.folder}")
        place = canary_path(self.link)
        draft = place.with_name(f".{place.name}.{os.getpid()}")
        told = {"bundle": bundle_id, "path": str(target), "share": share}
        with _refusals(f"cannot write {place}"):
            draft.write_text(json.dumps(told))
            draft.replace(place)

    def end_trial(self) -> None:
        """Let what is served decide for all customers."""
        with _refusals("cannot end the trial of a canary"):
            canary_path(self.link).unlink(missing_ok=True)

    def path(self, bundle_id: str) -> Path:
        """Return where a bundle stands, or is to stand."""
        return self.folder / bundle_id

    def ids(self) -> list[str]:
        """Return all bundles, oldest first."""
        if not self.folder.exists():
            return []
        there = [each for each in self.folder.iterdir() if (each / MANIFEST).exists()]
        there.sort(key=lambda each: (each / MANIFEST).stat().st_mtime_ns)
        return [each.name for each in there]

    def place(self, draft: Path, bundle_id: str) -> None:
        """Give a bundle that was written at ``draft`` its place."""
        with _refusals(f"cannot place {bundle_id}"):
            if not self.path(bundle_id).exists():
                draft.rename(self.path(bundle_id))

    def tidy(self, needed: Collection[str] = ()) -> None:
        """Drop the oldest bundles beyond what is kept, but none that is served or ``needed``."""
        served = self.served()
        for bundle_id in self.ids()[: -self._kept]:
            if bundle_id != served and bundle_id not in needed:
                shutil.rmtree(self.path(bundle_id), ignore_errors=True)

    @property
    def pinned(self) -> bool:
        """Whether the served bundle is to stay, whatever is learnt."""
        return (self.folder / PIN).exists()

    def pin(self, pinned: bool) -> None:
        """Let the served bundle stay, or no longer."""
        with _refusals("cannot pin"):
            if pinned:
                (self.folder / PIN).touch()
            else:
                (self.folder / PIN).unlink(missing_ok=True)


@contextlib.contextmanager
def _refusals(action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(f"{action}: {error.strerror}") from error
