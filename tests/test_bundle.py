"""Bundles: what was written is what is loaded, and anything else is refused with its reason."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer_world import FAST, SCHEMA, make_vectors
from trainer.bundle import (
    FILES,
    MANIFEST,
    SIGNATURE,
    Bundle,
    BundleError,
    Content,
    load_bundle,
    write_bundle,
)
from trainer.bundle_files import digest_of, id_of, json_bytes
from trainer.signing import SigningError, create_key, public_path, sign
from trainer.train import train


@pytest.fixture(scope="module")
def content() -> Content:
    return train(make_vectors(), FAST, lambda _done, _total: None)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "signing.pem"
    create_key(path)
    return path


@pytest.fixture
def written(content: Content, key: Path, tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", content, key)
    return tmp_path / "bundle"


def load(path: Path, key: Path, schema_version: str = SCHEMA) -> Bundle:
    public_key = public_path(key).read_bytes()
    return load_bundle(path, schema_version=schema_version, public_key=public_key)


def test_what_was_written_is_loaded(content: Content, key: Path, tmp_path: Path) -> None:
    bundle_id = write_bundle(tmp_path / "b", content, key)
    bundle = load(tmp_path / "b", key)
    assert bundle.model_version == bundle_id
    assert bundle_id.startswith("m-")
    assert len(bundle_id) == 18
    assert (bundle.schema_version, bundle.feature_names) == (SCHEMA, content.feature_names)
    assert bundle.thresholds == content.thresholds
    assert bundle.calibration.knots.tobytes() == content.calibration.knots.tobytes()
    assert bundle.model.logits(content.check_vectors).tobytes() == content.check_logits.tobytes()
    logit = bundle.model.logit(content.check_vectors[0])
    assert bundle.calibrate(logit) == content.calibration.probability(logit)
    assert bundle.manifest["layers"][0]["name"] == "base"
    assert bundle.manifest["data"]["rows"] == 6_000


def test_the_same_content_has_the_same_id(content: Content, key: Path, tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "a", content, key)
    assert write_bundle(tmp_path / "b", content, key) == first
    other = replace(content, facts={**content.facts, "seed": 99})
    assert write_bundle(tmp_path / "c", other, key) != first


def test_a_loaded_bundle_does_not_change(written: Path, key: Path) -> None:
    bundle = load(written, key)
    with pytest.raises(FrozenInstanceError):
        bundle.model_version = "m-0"  # type: ignore[misc]
    with pytest.raises(TypeError):
        bundle.manifest["seed"] = 2  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        bundle.model.array[0] = 0


def test_an_existing_directory_is_replaced_only_when_told(
    content: Content, key: Path, written: Path
) -> None:
    before = (written / MANIFEST).read_bytes()
    other = replace(content, facts={**content.facts, "seed": 99})
    with pytest.raises(BundleError, match="exists"):
        write_bundle(written, other, key)
    assert (written / MANIFEST).read_bytes() == before
    new_id = write_bundle(written, other, key, replace=True)
    assert load(written, key).model_version == new_id
    assert list(written.parent.iterdir()) == [written]


def test_a_failed_write_leaves_the_old_bundle(
    content: Content, written: Path, tmp_path: Path
) -> None:
    before = (written / MANIFEST).read_bytes()
    with pytest.raises(BundleError, match="cannot read the key"):
        write_bundle(written, content, tmp_path / "no.pem", replace=True)
    with pytest.raises(BundleError, match="cannot write"):
        write_bundle(tmp_path / "absent" / "b", content, _new_key(tmp_path))
    assert (written / MANIFEST).read_bytes() == before


def _new_key(directory: Path) -> Path:
    create_key(directory / "other.pem")
    return directory / "other.pem"


@pytest.mark.parametrize("name", [*FILES, MANIFEST, SIGNATURE])
def test_a_flipped_bit_anywhere_is_refused(name: str, written: Path, key: Path) -> None:
    data = bytearray((written / name).read_bytes())
    for place in (0, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[place] ^= 1
        (written / name).write_bytes(changed)
        with pytest.raises(BundleError):
            load(written, key)
    (written / name).write_bytes(data)
    assert load(written, key).schema_version == SCHEMA


@pytest.mark.parametrize("name", [*FILES, MANIFEST, SIGNATURE])
def test_a_missing_or_cut_file_is_refused(name: str, written: Path, key: Path) -> None:
    data = (written / name).read_bytes()
    (written / name).write_bytes(data[:-1])
    with pytest.raises(BundleError):
        load(written, key)
    (written / name).unlink()
    with pytest.raises(BundleError, match="cannot read"):
        load(written, key)


def test_another_signer_is_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="signature: the signature is not the key's"):
        load(written, _new_key(tmp_path))
    with pytest.raises(BundleError, match="signature: no public key"):
        load_bundle(written, schema_version=SCHEMA, public_key=b"none")


def test_another_schema_is_refused(written: Path, key: Path) -> None:
    with pytest.raises(BundleError, match="schema: the bundle is for s-test"):
        load(written, key, "s-other")


def resign(path: Path, key: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest as its own signer would, digests and id included."""
    manifest = json.loads((path / MANIFEST).read_bytes())
    del manifest["bundle_id"]
    change(manifest)
    for name in FILES:
        data = (path / name).read_bytes()
        manifest["files"][name] = {"sha256": digest_of(data), "bytes": len(data)}
    manifest["bundle_id"] = id_of(manifest)
    data = json_bytes(manifest)
    (path / MANIFEST).write_bytes(data)
    (path / SIGNATURE).write_bytes(sign(key, data))


def change_array(path: Path, name: str, change: Callable[[Any], Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, change(np.load(path / name, allow_pickle=False)), allow_pickle=False)
    (path / name).write_bytes(buffer.getvalue())


def other_first(value: float) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array.flat[0] = value
        return array

    return change


# Rightly signed, and still not to be used.
SIGNED: list[tuple[str, Callable[[Any], Any] | None, str]] = [
    ("leaf_values.npy", lambda a: np.nextafter(a, np.inf), r"leaf|equality"),
    ("check_logits.npy", lambda a: np.nextafter(a, np.inf), "equality: 64 of 64"),
    ("check_vectors.npy", lambda a: a[:, 1:], "equality: stored rows"),
    ("check_vectors.npy", lambda a: a[:0], "equality: stored rows"),
    ("check_logits.npy", lambda a: a.astype(np.float32), "equality: stored rows"),
    ("split_features.npy", other_first(10_000), "model: a split on a feature outside"),
    ("depths.npy", other_first(-1), "model: "),
    ("depths.npy", lambda a: a.astype(np.float64), "model: "),
    ("scale_and_bias.npy", lambda a: a[:1], "model: scale_and_bias"),
    ("calibration.npy", lambda a: a[:, ::-1].copy(), "calibration"),
    ("features.json", None, "schema: features.json"),
]


@pytest.mark.parametrize(("name", "change", "reason"), SIGNED)
def test_a_signed_but_unfit_model_is_refused(
    name: str, change: Callable[[Any], Any] | None, reason: str, written: Path, key: Path
) -> None:
    if change is None:
        (written / name).write_bytes(b"{}")
    else:
        change_array(written, name, change)
    resign(written, key, lambda _: None)
    with pytest.raises(BundleError, match=reason):
        load(written, key)


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ({"format": 3}, "format: only"),
        ({"thresholds": {"review": 0.5}}, "thresholds"),
        ({"thresholds": {"review": 2.0, "decline": 0.5}}, "thresholds"),
        ({"thresholds": {"review": "a", "decline": 0.5}}, "thresholds"),
        ({"thresholds": None}, "format: manifest.json has no thresholds"),
    ],
)
def test_a_signed_manifest_of_another_form_is_refused(
    update: dict[str, Any], reason: str, written: Path, key: Path
) -> None:
    resign(written, key, lambda manifest: manifest.update(update))
    with pytest.raises(BundleError, match=reason):
        load(written, key)


@pytest.mark.parametrize("data", [b"[]", b"{", b"\xff", b'{"format": 1, "x": NaN}', b"[" * 100_000])
def test_what_is_no_manifest_is_refused(data: bytes, written: Path, key: Path) -> None:
    (written / MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match=r"format|not JSON"):
        load(written, key)


def test_pickles_are_not_read(written: Path, key: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([print], dtype=object), allow_pickle=True)
    (written / "depths.npy").write_bytes(buffer.getvalue())
    resign(written, key, lambda _: None)
    with pytest.raises(BundleError, match=r"depths\.npy is no array"):
        load(written, key)


def test_a_file_beyond_its_bound_is_not_read(written: Path, key: Path) -> None:
    with (written / "scale_and_bias.npy").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: reading it would not end well
    with pytest.raises(BundleError, match="more than 4096"):
        load(written, key)


def test_loading_imports_no_catboost(written: Path, key: Path) -> None:
    code = (
        "import sys, pathlib; from trainer.bundle import load_bundle;"
        "load_bundle(pathlib.Path(sys.argv[1]), schema_version=sys.argv[2],"
        "public_key=pathlib.Path(sys.argv[3]).read_bytes());"
        "print([n for n in ('catboost', 'pandas', 'matplotlib', 'pyarrow') if n in sys.modules])"
    )
    arguments = [sys.executable, "-c", code, str(written), SCHEMA, str(public_path(key))]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.strip() == "[]"


def test_keys_are_private_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    with pytest.raises(SigningError, match="cannot make the key"):
        create_key(path)
    assert path.read_bytes() == before
    with pytest.raises(SigningError, match="no private key"):
        sign(public_path(path), b"data")


def test_a_moved_bundle_stays_good(written: Path, key: Path, tmp_path: Path) -> None:
    shutil.move(written, tmp_path / "elsewhere")
    assert load(tmp_path / "elsewhere", key).schema_version == SCHEMA
