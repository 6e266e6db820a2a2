"""Owns a bundle as files: which, how large, and that they are whole. Must not know models.

FILES is what every bundle has; a layer of LAYER_FILES has all of its own or none. The manifest
holds the digest of every other file. Arrays and JSON only, never pickle.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FORMAT = 2
# Format 1 is format 2 without a layer beside the base.
FORMATS = (1, FORMAT)
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
MANIFEST_BYTES_MAX = 1 << 20
TREE_ARRAYS = ("depths", "split_features", "split_borders", "leaf_values", "leaf_weights")

_TREE_FILES = {
    "depths.npy": 1 << 20,
    "split_features.npy": 16 << 20,
    "split_borders.npy": 16 << 20,
    "leaf_values.npy": 64 << 20,
    "leaf_weights.npy": 64 << 20,
    "scale_and_bias.npy": 1 << 12,
}
# Every file of a base beside the manifest and its signature, and how large it may be.
FILES: Mapping[str, int] = MappingProxyType(
    {
        "base.cbm": 1 << 30,
        "features.json": 8 << 20,
        **_TREE_FILES,
        "calibration.npy": 4 << 20,
        "check_vectors.npy": 1 << 30,
        "check_logits.npy": 1 << 20,
    }
)
_NPY = b"\x93NUMPY\x01\x00"  # what array_bytes writes
_KINDS = "bfiu"
EXPERT_ARRAYS = ("features", "knots", "terms", "thresholds", "gains", "boost_max")
# The files of the layers beside the base; "whole" comes with any of them.
LAYER_FILES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "residual": {f"residual_{name}": size for name, size in _TREE_FILES.items()},
        "expert": {f"expert_{name}.npy": 1 << 20 for name in EXPERT_ARRAYS},
        "whole": {"check_whole_logits.npy": 1 << 20},
    }
)
_SIZES = {**FILES, **{n: s for files in LAYER_FILES.values() for n, s in files.items()}}


class BundleError(Exception):
    """The bundle is refused, with the reason; whatever was in use stays in use."""


def array_bytes(array: NDArray[Any]) -> bytes:
    """Return an array as the bytes of its file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def array_of(name: str, data: bytes) -> NDArray[Any]:
    """Return the array in a file's bytes, which must be all of them. Raises BundleError."""
    try:
        return _array_of(data)
    # What a header can raise depends on the Python that reads it.
    except (
        ValueError, TypeError, KeyError, SyntaxError, MemoryError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise BundleError(f"{name} is no array: {error}") from error


def _array_of(data: bytes) -> NDArray[Any]:
    start = len(_NPY) + 2
    stop = start + int.from_bytes(data[len(_NPY) : start], "little")
    if not data.startswith(_NPY):
        raise ValueError("it is not what a trainer writes")
    header = ast.literal_eval(data[start:stop].decode("ascii").strip())
    shape, dtype = header["shape"], np.dtype(str(header["descr"]))
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("its shape is not of numbers")
    content = data[stop:]
    if dtype.kind not in _KINDS or prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"{len(content)} bytes are not {shape} of {dtype}")
    if not content:
        return np.empty(shape, dtype)
    order: Literal["C", "F"] = "F" if header["fortran_order"] else "C"
    return np.ascontiguousarray(np.frombuffer(content, dtype).reshape(shape, order=order).copy())


def json_bytes(value: object) -> bytes:
    """Return the one form in which a value is written and digested."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode()


def digest_of(data: bytes) -> str:
    """Return the SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def id_of(manifest: Mapping[str, Any]) -> str:
    """Return the id of a manifest: a digest of all that is in it beside the id."""
    rest = {name: value for name, value in manifest.items() if name != "bundle_id"}
    return "m-" + digest_of(json_bytes(rest))[:16]


def check_sizes(files: Mapping[str, bytes]) -> None:
    """Raise BundleError where a file is larger than a reader would take."""
    for name, data in files.items():
        if len(data) > _SIZES[name]:
            raise BundleError(f"{name} has {len(data)} bytes, more than {_SIZES[name]}")


def write_directory(path: Path, files: Mapping[str, bytes]) -> None:
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
        sync_directory(new)
        _put(new, path, work / "old")
        sync_directory(path.parent)
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


def sync_directory(directory: Path) -> None:
    """Let what was renamed in a directory outlive a power cut. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path, bytes_max: int) -> bytes:
    """Return a file's bytes. Raises BundleError where it is larger or cannot be read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > bytes_max:
                raise BundleError(f"{path.name} has {size} bytes, more than {bytes_max}")
            return file.read(bytes_max)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error


def parse_manifest(data: bytes) -> dict[str, Any]:
    """Return the manifest where its form is one that this code knows."""
    try:
        manifest = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") not in FORMATS:
        raise BundleError(f"format: only {FORMATS} are known")
    kinds = {"bundle_id": str, "schema_version": str, "files": dict, "thresholds": dict}
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            raise BundleError(f"format: {MANIFEST} has no {name}")
    _check_names(manifest["format"], set(manifest["files"]))
    if id_of(manifest) != manifest["bundle_id"]:
        raise BundleError(f"format: bundle_id is not the digest of {MANIFEST}")
    return manifest


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _check_names(number: int, names: set[str]) -> None:
    wanted = set(FILES)
    for files in LAYER_FILES.values():
        if number >= FORMAT and names & set(files):
            wanted |= set(files)
    layers = names - set(FILES)
    whole = set(LAYER_FILES["whole"])
    if names != wanted or (layers and not (whole <= names and layers > whole)):
        raise BundleError(f"format: {MANIFEST} lists other files than this format has")


def read_digested(path: Path, listed: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the bytes of every listed file, once its digest agrees. Raises BundleError."""
    files = {}
    for name, entry in listed.items():
        data = read_file(path / name, _SIZES[name])
        if not isinstance(entry, dict) or entry.get("sha256") != digest_of(data):
            raise BundleError(f"digest: {name} is not the file that was signed")
        files[name] = data
    return files
