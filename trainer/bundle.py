"""Owns the bundle: one version of a model as a signed directory. Must not import CatBoost.

The manifest holds the digest of every other file and is what the signature covers, so what a
scorer loads is what the trainer wrote. Arrays and JSON only, never pickle. FILES is the format.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.calibration import Calibration, CalibrationError
from trainer.model import Model, ModelError, Trees
from trainer.signing import SIGNATURE_BYTES, SigningError, sign, verify
from trainer.thresholds import Thresholds

FORMAT = 1
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
MANIFEST_BYTES_MAX = 1 << 20
CHECK_ROWS_MAX = 4_096

# Every file beside the manifest and its signature, and how large it may be.
FILES: Mapping[str, int] = MappingProxyType(
    {
        "base.cbm": 1 << 30,
        "features.json": 8 << 20,
        "depths.npy": 1 << 20,
        "split_features.npy": 16 << 20,
        "split_borders.npy": 16 << 20,
        "leaf_values.npy": 64 << 20,
        "leaf_weights.npy": 64 << 20,
        "scale_and_bias.npy": 1 << 12,
        "calibration.npy": 4 << 20,
        "check_vectors.npy": 1 << 30,
        "check_logits.npy": 1 << 20,
    }
)
# Kept for training a residual on it, and checked by digest alone.
_NOT_LOADED = "base.cbm"
_TREE_ARRAYS = ("depths", "split_features", "split_borders", "leaf_values", "leaf_weights")


class BundleError(Exception):
    """The bundle is refused, with the reason; whatever was in use stays in use."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a bundle is made of.

    ``base_cbm`` is CatBoost's own file; ``check_vectors`` float32[k, n] are rows with the logits
    float64[k] that CatBoost gave them; ``facts`` are JSON values for the manifest.
    """

    schema_version: str
    feature_names: tuple[str, ...]
    base_cbm: bytes
    trees: Trees
    calibration: Calibration
    thresholds: Thresholds
    check_vectors: NDArray[np.float32]
    check_logits: NDArray[np.float64]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that passed every check, ready to score.

    ``manifest`` is read-only at its top. ``model`` evaluates; ``calibrate`` turns its logit into a
    probability to hold against ``thresholds``.
    """

    model_version: str
    schema_version: str
    feature_names: tuple[str, ...]
    model: Model
    calibration: Calibration
    thresholds: Thresholds
    manifest: Mapping[str, Any]

    def calibrate(self, logit: float) -> float:
        """Return the probability of fraud for a logit."""
        return self.calibration.probability(logit)


def write_bundle(path: Path, content: Content, key_path: Path, *, replace: bool = False) -> str:
    """Write a bundle whole or not at all and return its id.

    Signed with the private key in ``key_path``. Raises BundleError where ``path`` exists, unless
    ``replace``, or cannot be written.
    """
    if path.exists() and not replace:
        raise BundleError(f"{path} exists; it is replaced only when told to")
    files = _encode(content)
    bundle_id, manifest = _manifest(content, files)
    try:
        signature = sign(key_path, manifest)
        _write_directory(path, {**files, MANIFEST: manifest, SIGNATURE: signature})
    except SigningError as error:
        raise BundleError(str(error)) from error
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error.strerror}") from error
    return bundle_id


def load_bundle(path: Path, *, schema_version: str, public_key: bytes) -> Bundle:
    """Return the bundle at ``path`` once it passed every check.

    In this order: format, signature, digests, schema, supported model, the evaluator's bits on
    the stored rows, calibration and thresholds. ``public_key`` is PEM. Raises BundleError with
    the first reason to refuse it.
    """
    manifest_bytes = _read(path / MANIFEST, MANIFEST_BYTES_MAX)
    manifest = _parse_manifest(manifest_bytes)
    try:
        verify(public_key, manifest_bytes, _read(path / SIGNATURE, SIGNATURE_BYTES))
    except SigningError as error:
        raise BundleError(f"signature: {error}") from error
    files = {name: _read_digested(path, name, manifest["files"]) for name in FILES}
    names = _check_schema(manifest, files["features.json"], schema_version)
    arrays = {n.removesuffix(".npy"): _array(n, d) for n, d in files.items() if n.endswith(".npy")}
    model = _model(arrays, len(names))
    _check_equality(model, arrays["check_vectors"], arrays["check_logits"])
    try:
        calibration = Calibration(arrays["calibration"])
        thresholds = Thresholds(**manifest["thresholds"])
    except (CalibrationError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"calibration or thresholds: {error}") from error
    return Bundle(
        model_version=manifest["bundle_id"],
        schema_version=schema_version,
        feature_names=names,
        model=model,
        calibration=calibration,
        thresholds=thresholds,
        manifest=MappingProxyType(manifest),
    )


def _encode(content: Content) -> dict[str, bytes]:
    trees = content.trees
    arrays: dict[str, NDArray[Any]] = {name: getattr(trees, name) for name in _TREE_ARRAYS}
    arrays |= {
        "scale_and_bias": np.array([trees.scale, trees.bias]),
        "calibration": content.calibration.knots,
        "check_vectors": content.check_vectors,
        "check_logits": content.check_logits,
    }
    files = {"base.cbm": content.base_cbm, "features.json": _json(list(content.feature_names))}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        files[f"{name}.npy"] = buffer.getvalue()
    for name, data in files.items():
        if len(data) > FILES[name]:
            raise BundleError(f"{name} has {len(data)} bytes, more than {FILES[name]}")
    return files


def _manifest(content: Content, files: Mapping[str, bytes]) -> tuple[str, bytes]:
    """Return the id, a digest of all the rest, and the manifest with the id in it."""
    probabilities = content.calibration.knots[1]
    rest = {
        **content.facts,
        "format": FORMAT,
        "schema_version": content.schema_version,
        "features": len(content.feature_names),
        "feature_names_digest": _digest(files["features.json"]),
        # What a logit is the sum of; later layers add themselves here.
        "layers": [{"name": "base", "kind": "oblivious_trees", "trees": len(content.trees.depths)}],
        "thresholds": asdict(content.thresholds),
        "calibration": {
            "knots": len(probabilities),
            "lowest": float(probabilities[1]),
            "highest": float(probabilities[-2]),
        },
        "files": {n: {"sha256": _digest(d), "bytes": len(d)} for n, d in files.items()},
    }
    bundle_id = _bundle_id(rest)
    return bundle_id, _json({**rest, "bundle_id": bundle_id})


def _json(value: object) -> bytes:
    """Return the one form in which a value is written and digested."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _bundle_id(rest: Mapping[str, Any]) -> str:
    return "m-" + _digest(_json(rest))[:16]


def _write_directory(path: Path, files: Mapping[str, bytes]) -> None:
    """Write the files beside ``path``, then give the directory its name in one step."""
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        new = work / "new"
        new.mkdir()
        for name, data in files.items():
            with (new / name).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        _sync(new)
        _put(new, path, work / "old")
        _sync(path.parent)
    finally:
        shutil.rmtree(work)


def _put(new: Path, path: Path, aside: Path) -> None:
    # A directory with files cannot be renamed over, so an old one steps aside, and comes back
    # where the new one cannot take its place.
    replaced = path.exists()
    if replaced:
        path.rename(aside)
    try:
        new.rename(path)
    except OSError:
        if replaced:
            aside.rename(path)
        raise


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > bytes_max:
                raise BundleError(f"{path.name} has {size} bytes, more than {bytes_max}")
            return file.read(bytes_max)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error


def _parse_manifest(data: bytes) -> dict[str, Any]:
    """Return the manifest where its form is the one that this code knows."""
    try:
        manifest = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"format: only {FORMAT} is known")
    kinds = {"bundle_id": str, "schema_version": str, "files": dict, "thresholds": dict}
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            raise BundleError(f"format: {MANIFEST} has no {name}")
    if set(manifest["files"]) != set(FILES):
        raise BundleError(f"format: {MANIFEST} lists other files than this format has")
    if _bundle_id({k: v for k, v in manifest.items() if k != "bundle_id"}) != manifest["bundle_id"]:
        raise BundleError(f"format: bundle_id is not the digest of {MANIFEST}")
    return manifest


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _read_digested(path: Path, name: str, listed: Mapping[str, Any]) -> bytes:
    """Return a file's bytes, or none for one that is not loaded, once its digest agrees."""
    data = _read(path / name, FILES[name])
    entry = listed[name]
    if not isinstance(entry, dict) or entry.get("sha256") != _digest(data):
        raise BundleError(f"digest: {name} is not the file that was signed")
    return b"" if name == _NOT_LOADED else data


def _check_schema(manifest: Mapping[str, Any], names: bytes, wanted: str) -> tuple[str, ...]:
    found = manifest["schema_version"]
    if found != wanted:
        raise BundleError(f"schema: the bundle is for {found}, this process computes {wanted}")
    try:
        parsed = json.loads(names)
    except ValueError as error:
        raise BundleError(f"schema: features.json is not JSON: {error}") from error
    if not isinstance(parsed, list) or not all(isinstance(name, str) for name in parsed):
        raise BundleError("schema: features.json is no list of names")
    return tuple(parsed)


def _array(name: str, data: bytes) -> NDArray[Any]:
    try:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BundleError(f"{name} is no array: {error}") from error
    return np.ascontiguousarray(array)


def _model(arrays: Mapping[str, NDArray[Any]], n_features: int) -> Model:
    scale_and_bias = arrays["scale_and_bias"]
    if scale_and_bias.shape != (2,) or scale_and_bias.dtype != np.float64:
        raise BundleError("model: scale_and_bias must be float64[2]")
    scale, bias = scale_and_bias.tolist()
    own = {name: arrays[name] for name in _TREE_ARRAYS}
    try:
        return Model(Trees(n_features=n_features, **own, scale=scale, bias=bias))
    except ModelError as error:
        raise BundleError(f"model: {error}") from error


def _check_equality(model: Model, vectors: NDArray[Any], logits: NDArray[Any]) -> None:
    """Refuse a model whose logits here differ by a bit from what CatBoost computed."""
    rows = len(vectors) if vectors.ndim == 2 else 0
    if not 0 < rows <= CHECK_ROWS_MAX or vectors.shape[1] != model.n_features:
        raise BundleError(f"equality: stored rows of shape {vectors.shape} do not fit the model")
    if vectors.dtype != np.float32 or logits.dtype != np.float64 or logits.shape != (rows,):
        raise BundleError("equality: stored rows and logits must be float32 and float64")
    contributions = np.empty(model.n_features)
    found = np.array([model.score(vector, contributions) for vector in vectors])
    different = int((found.view(np.int64) != logits.view(np.int64)).sum())
    different += int((model.logits(vectors).view(np.int64) != logits.view(np.int64)).sum())
    if different:
        raise BundleError(f"equality: {different} of {2 * rows} logits differ from CatBoost's")
