"""The bundle in use: a good one is taken, a bad one is refused and the old one stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fraudsvc.models import BundleFile
from tests.conftest import Trained
from trainer.bundle import MANIFEST, BundleError
from trainer.signing import create_key, public_path


class Place:
    """A link to the bundle in use, and what was said of those refused."""

    def __init__(self, folder: Path, trained: Trained) -> None:
        self.folder = folder
        self.link = folder / "bundle"
        self.trained = trained
        self.errors: list[BundleError] = []

    def point(self, target: Path) -> None:
        draft = self.folder / "next"
        draft.symlink_to(target)
        draft.replace(self.link)

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.trained.bundle_path, self.folder / name))

    def file(self, public_key: bytes | None = None) -> BundleFile:
        key = self.trained.public_key if public_key is None else public_key
        return BundleFile(self.link, key, self.errors.append)


@pytest.fixture
def place(tmp_path: Path, trained: Trained) -> Place:
    return Place(tmp_path, trained)


def test_none_until_one_comes(place: Place) -> None:
    file = place.file()
    assert (file.current, file.poll(), place.errors) == (None, None, [])
    place.point(place.trained.bundle_path)
    loaded = file.poll()
    assert loaded is not None
    assert loaded.model_version == place.trained.bundle.model_version
    assert file.poll() is loaded  # it is loaded once


@pytest.mark.parametrize("name", ["leaf_values.npy", "calibration.npy", MANIFEST, "manifest.sig"])
def test_a_damaged_bundle_is_refused_once_and_the_old_one_stays(place: Place, name: str) -> None:
    place.point(place.trained.bundle_path)
    file = place.file()
    before = file.current
    damaged = place.copy("damaged") / name
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    place.point(damaged.parent)
    assert file.poll() is before is not None
    assert file.poll() is before
    assert len(place.errors) == 1
    place.point(place.copy("good"))
    assert file.poll() is before  # the same bundle is in memory still
    assert len(place.errors) == 1


def test_another_schema_is_refused(place: Place) -> None:
    changed = place.copy("changed") / MANIFEST
    manifest = json.loads(changed.read_text())
    manifest["schema_version"] = "s-other"
    changed.write_text(json.dumps(manifest))
    place.point(changed.parent)
    assert place.file().current is None
    assert len(place.errors) == 1


def test_only_the_known_signer_is_trusted(place: Place, tmp_path: Path) -> None:
    create_key(tmp_path / "other")
    place.point(place.trained.bundle_path)
    for key in (public_path(tmp_path / "other").read_bytes(), b""):
        assert place.file(key).current is None
    assert [str(error).split(":")[0] for error in place.errors] == ["signature"] * 2


def test_a_bundle_that_goes_away_stays_in_use(place: Place) -> None:
    place.point(place.copy("here"))
    file = place.file()
    before = file.current
    shutil.rmtree(place.folder / "here")
    assert file.poll() is before is not None
    assert place.errors == []
