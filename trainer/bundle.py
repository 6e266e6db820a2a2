"""Owns the bundle: one version of a model as a signed directory. Must not import CatBoost.

The manifest holds the digest of every other file and is what the signature covers, so what a
scorer loads is what the trainer wrote. ``bundle_files`` is the format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.bundle_files import (
    EXPERT_ARRAYS,
    FILES,
    FORMAT,
    MANIFEST,
    MANIFEST_BYTES_MAX,
    SIGNATURE,
    TREE_ARRAYS,
    BundleError,
    array_bytes,
    array_of,
    check_sizes,
    digest_of,
    id_of,
    json_bytes,
    parse_manifest,
    read_digested,
    read_file,
    write_directory,
)
from trainer.calibration import Calibration, CalibrationError
from trainer.expert import Expert
from trainer.model import Model, PackedTrees
from trainer.signing import SIGNATURE_BYTES, SigningError, sign, verify
from trainer.thresholds import Thresholds
from trainer.trees import ModelError, Trees

__all__ = [
    "FILES",
    "MANIFEST",
    "SIGNATURE",
    "Bundle",
    "BundleError",
    "Content",
    "load_bundle",
    "load_content",
    "read_manifest",
    "write_bundle",
]
CHECK_ROWS_MAX = 4_096
# Kept for continuing the training, and checked by digest alone.
_BASE_CBM = "base.cbm"
# What the format itself says in a manifest; the rest are the facts of the content.
_NO_FACTS = (
    "bundle_id", "format", "schema_version", "features", "feature_names_digest", "layers",
    "thresholds", "calibration", "files",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Content:
    """What a bundle is made of.

    ``base_cbm`` is CatBoost's own file; ``check_vectors`` float32[k, n] are rows with the logits
    float64[k] that CatBoost's base gave them; ``facts`` are JSON values for the manifest.
    ``residual`` and ``expert`` are the layers beside the base (T2 and T1), each where there is one.
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
    residual: Trees | None = None
    expert: Expert | None = None

    def model(self) -> Model:
        """Return the model of all layers. Raises ModelError."""
        return Model(self.trees, self.residual, self.expert)


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
    manifest = _manifest(content, files)
    bundle_id = id_of(manifest)
    data = json_bytes({**manifest, "bundle_id": bundle_id})
    try:
        signature = sign(key_path, data)
        write_directory(path, {**files, MANIFEST: data, SIGNATURE: signature})
    except SigningError as error:
        raise BundleError(str(error)) from error
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error.strerror}") from error
    return bundle_id


def load_bundle(
    path: Path, *, schema_version: str, public_key: bytes, like: Bundle | None = None
) -> Bundle:
    """Return the bundle at ``path`` once it passed every check.

    In this order: format, signature, digests, schema, supported model, the evaluator's bits on
    the stored rows, calibration and thresholds. ``public_key`` is PEM. Where ``like`` has the same
    base, byte for byte, its tables of contributions are used again, which is most of the work.
    Raises BundleError with the first reason to refuse it.
    """
    return _load(path, schema_version, public_key, like)[1]


def load_content(path: Path, *, schema_version: str, public_key: bytes) -> Content:
    """Return what a bundle is made of, after the checks of ``load_bundle``.

    So that one process can renew what another wrote. Raises BundleError.
    """
    return _load(path, schema_version, public_key, None)[0]


def read_manifest(path: Path, public_key: bytes) -> dict[str, Any]:
    """Return the manifest at ``path`` once its form and signature are right. Raises BundleError."""
    data = read_file(path / MANIFEST, MANIFEST_BYTES_MAX)
    manifest = parse_manifest(data)
    try:
        verify(public_key, data, read_file(path / SIGNATURE, SIGNATURE_BYTES))
    except SigningError as error:
        raise BundleError(f"signature: {error}") from error
    return manifest


def _load(
    path: Path, schema_version: str, public_key: bytes, like: Bundle | None
) -> tuple[Content, Bundle]:
    manifest = read_manifest(path, public_key)
    files = read_digested(path, manifest["files"])
    names = _check_schema(manifest, files["features.json"], schema_version)
    arrays = {
        name.removesuffix(".npy"): array_of(name, data)
        for name, data in files.items()
        if name.endswith(".npy")
    }
    base, residual, expert = _layers(arrays, len(names))
    try:
        model = Model(_known_base(manifest, like) or base, residual, expert)
    except ModelError as error:
        raise BundleError(f"model: {error}") from error
    _check_equality(model, arrays)
    try:
        calibration = Calibration(arrays["calibration"])
        thresholds = Thresholds(**manifest["thresholds"])
    except (CalibrationError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"calibration or thresholds: {error}") from error
    facts = {name: value for name, value in manifest.items() if name not in _NO_FACTS}
    content = Content(
        schema_version, names, files[_BASE_CBM], base, calibration, thresholds,
        arrays["check_vectors"], arrays["check_logits"], facts, residual, expert,
    )  # fmt: skip
    return content, Bundle(
        model_version=manifest["bundle_id"],
        schema_version=schema_version,
        feature_names=names,
        model=model,
        calibration=calibration,
        thresholds=thresholds,
        manifest=MappingProxyType(manifest),
    )


def _encode(content: Content) -> dict[str, bytes]:
    arrays = {
        **_tree_arrays("", content.trees),
        "calibration": content.calibration.knots,
        "check_vectors": content.check_vectors,
        "check_logits": content.check_logits,
    }
    if content.residual is not None:
        arrays |= _tree_arrays("residual_", content.residual)
    if content.expert is not None:
        arrays |= {f"expert_{n}": np.asarray(getattr(content.expert, n)) for n in EXPERT_ARRAYS}
    if content.residual is not None or content.expert is not None:
        arrays["check_whole_logits"] = _model_of(content).logits(content.check_vectors)
    files = {_BASE_CBM: content.base_cbm, "features.json": json_bytes(list(content.feature_names))}
    files |= {f"{name}.npy": array_bytes(array) for name, array in arrays.items()}
    check_sizes(files)
    return files


def _model_of(content: Content) -> Model:
    try:
        return content.model()
    except ModelError as error:
        raise BundleError(f"model: {error}") from error


def _tree_arrays(prefix: str, trees: Trees) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {f"{prefix}{n}": getattr(trees, n) for n in TREE_ARRAYS}
    arrays[f"{prefix}scale_and_bias"] = np.array([trees.scale, trees.bias])
    return arrays


def _manifest(content: Content, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the manifest without its id."""
    probabilities = content.calibration.knots[1]
    return {
        **content.facts,
        "format": FORMAT,
        "schema_version": content.schema_version,
        "features": len(content.feature_names),
        "feature_names_digest": digest_of(files["features.json"]),
        "layers": _layer_facts(content),
        "thresholds": asdict(content.thresholds),
        "calibration": {
            "knots": len(probabilities),
            "lowest": float(probabilities[1]),
            "highest": float(probabilities[-2]),
        },
        "files": {n: {"sha256": digest_of(d), "bytes": len(d)} for n, d in files.items()},
    }


def _layer_facts(content: Content) -> list[dict[str, Any]]:
    """Return what a logit is the sum of, in order."""
    layers: list[dict[str, Any]] = [
        {"name": name, "kind": "oblivious_trees", "trees": len(trees.depths)}
        for name, trees in (("base", content.trees), ("residual", content.residual))
        if trees is not None
    ]
    if (expert := content.expert) is not None:
        layers.append(
            {
                "name": "expert",
                "kind": "few_shot_scorecards",
                "scorecards": int((expert.gains > 0.0).sum()),
                "features": [content.feature_names[feature] for feature in expert.features],
                "boost_max": expert.boost_max,
            }
        )
    return layers


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


def _layers(
    arrays: Mapping[str, NDArray[Any]], n_features: int
) -> tuple[Trees, Trees | None, Expert | None]:
    """Return the base, and the residual and the expert where the files of one are there."""
    base = _trees(arrays, "", n_features)
    residual = expert = None
    if "residual_depths" in arrays:
        residual = _trees(arrays, "residual_", n_features)
    if "expert_features" in arrays:
        own = {name: arrays[f"expert_{name}"] for name in EXPERT_ARRAYS}
        boost_max = own.pop("boost_max")
        if boost_max.shape not in ((), (1,)) or boost_max.dtype != np.float64:
            raise BundleError("model: the expert: boost_max must be one float64")
        expert = Expert(**own, boost_max=boost_max.item())
    return base, residual, expert


def _known_base(manifest: Mapping[str, Any], like: Bundle | None) -> PackedTrees | None:
    if like is None:
        return None
    names = [f"{name}.npy" for name in (*TREE_ARRAYS, "scale_and_bias")]
    mine, others = (
        [each["files"][name]["sha256"] for name in names] + [each["feature_names_digest"]]
        for each in (manifest, like.manifest)
    )
    return like.model.base if mine == others else None


def _trees(arrays: Mapping[str, NDArray[Any]], prefix: str, n_features: int) -> Trees:
    scale_and_bias = arrays[f"{prefix}scale_and_bias"]
    if scale_and_bias.shape != (2,) or scale_and_bias.dtype != np.float64:
        raise BundleError(f"model: {prefix}scale_and_bias must be float64[2]")
    scale, bias = scale_and_bias.tolist()
    own = {name: arrays[f"{prefix}{name}"] for name in TREE_ARRAYS}
    return Trees(n_features=n_features, **own, scale=scale, bias=bias)


def _check_equality(model: Model, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse a model whose logits here differ by a bit from those stored.

    The base's are what CatBoost computed; of all layers, what the writer did.
    """
    vectors, base = arrays["check_vectors"], arrays["check_logits"]
    whole = arrays.get("check_whole_logits", base)
    rows = len(vectors) if vectors.ndim == 2 else 0
    if not 0 < rows <= CHECK_ROWS_MAX or vectors.shape[1] != model.n_features:
        raise BundleError(f"equality: stored rows of shape {vectors.shape} do not fit the model")
    for logits in (base, whole):
        if vectors.dtype != np.float32 or logits.dtype != np.float64 or logits.shape != (rows,):
            raise BundleError("equality: stored rows and logits must be float32 and float64")
    _compare(model.base_logits(vectors), base, "CatBoost's")
    _compare(model.logits(vectors), whole, "the stored")
    _compare(model.scores(vectors), whole, "the stored")


def _compare(found: NDArray[np.float64], stored: NDArray[np.float64], whose: str) -> None:
    different = int((found.view(np.int64) != stored.view(np.int64)).sum())
    if different:
        raise BundleError(f"equality: {different} of {len(stored)} logits differ from {whose}")
