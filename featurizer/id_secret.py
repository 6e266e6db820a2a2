"""The file of the id secret. Nobody says what is in it."""

from __future__ import annotations

from pathlib import Path

from featurizer.hashing import SECRET_BYTES


def read_id_secret(path: str) -> bytes:
    """Return the secret in a file, zeros for "". Raises OSError, ValueError for another size."""
    if not path:
        return bytes(SECRET_BYTES)
    secret = Path(path).read_bytes()
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"{path} must hold {SECRET_BYTES} bytes, not {len(secret)}")
    return secret
