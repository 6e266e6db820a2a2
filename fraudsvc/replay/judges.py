"""Finds the bundle and the policy that decided: in the archive, on the shelf, or in use.

Owns where is looked, in which order, and what is said where nothing is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featurizer.features import INDEX, SCHEMA_VERSION
from fraudsvc.archive import Archive
from fraudsvc.policy import Policy, PolicyError, load_policy
from fraudsvc.replay.again import GoneError, Judges
from trainer.bundle import MANIFEST, Bundle, BundleError, load_bundle, read_manifest

BUNDLES_MAX = 16  # in memory


@dataclass(frozen=True, slots=True)
class Places:
    """Where what decided may be: the archive, the shelf's folder, the link in use, a policy file.

    ``public_key`` is the bytes that bundles are signed with.
    """

    archive: Path
    models: Path
    bundle: Path
    policy: Path
    public_key: bytes


class Finder:
    """Finds and keeps in memory what decided. ``judges`` is what a replay asks."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._archive = Archive(places.archive)
        self._bundles: dict[str, Bundle | GoneError] = {}
        self._policies: dict[str, Policy | GoneError] = {}

    @property
    def judges(self) -> Judges:
        """What finds by a version."""
        return Judges(self.bundle, self.policy)

    def bundle(self, model_version: str) -> Bundle:
        """Return a bundle. Raises GoneError."""
        found = self._bundles.pop(model_version, None)
        if found is None:
            try:
                found = self._load(model_version)
            except GoneError as error:
                found = error
        self._bundles[model_version] = found
        if len(self._bundles) > BUNDLES_MAX:
            del self._bundles[next(iter(self._bundles))]
        if isinstance(found, GoneError):
            raise found
        return found

    def policy(self, version: str) -> Policy:
        """Return a policy. Raises GoneError."""
        if version not in self._policies:
            try:
                self._policies[version] = self._read(version)
            except GoneError as error:
                self._policies[version] = error
        found = self._policies[version]
        if isinstance(found, GoneError):
            raise found
        return found

    def policy_path(self, version: str) -> Path:
        """Return the file of a policy that was found."""
        archived = self._archive.policy_path(version)
        return archived if archived.exists() else self._places.policy

    def _load(self, model_version: str) -> Bundle:
        places = self._places
        refused = []
        folders = (self._archive.bundle_path(model_version), places.models / model_version)
        for path in (*folders, places.bundle):
            if not (path / MANIFEST).exists():
                continue
            try:
                found = read_manifest(path, places.public_key)["bundle_id"]
                if found == model_version:
                    return load_bundle(
                        path, schema_version=SCHEMA_VERSION, public_key=places.public_key
                    )
                if path != places.bundle:
                    refused.append(f"{path} is {found}")
            except BundleError as error:
                refused.append(f"{path}: {error}")
        if refused:
            raise GoneError(f"bundle {model_version} is not as it was: {'; '.join(refused)}")
        where = f"not in {folders[0].parent}, nor in {places.models}"
        raise GoneError(f"bundle {model_version} is gone: {where}")

    def _read(self, version: str) -> Policy:
        archived = self._archive.policy_path(version)
        refused = ""
        for path in (archived, self._places.policy):
            try:
                policy = load_policy(path, INDEX)
            except OSError:
                continue
            except PolicyError as error:
                refused = str(error)
                continue
            if policy.version == version:
                return policy
            if path == archived:
                refused = f"{path} is {policy.version}"
        if refused:
            raise GoneError(f"policy {version} is not as it was: {refused}")
        raise GoneError(f"policy {version} is gone: not in {archived.parent}")
