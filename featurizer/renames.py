"""How an option says that a file calls a column by another name."""

from __future__ import annotations

from collections.abc import Sequence

from featurizer.history import HistoryError


def renames_of(texts: Sequence[str]) -> dict[str, str]:
    """Return the file's name by ours, of texts OURS=THEIRS. Raises HistoryError."""
    pairs: dict[str, str] = {}
    for text in texts:
        ours, _, theirs = text.partition("=")
        if not (ours and theirs):
            raise HistoryError(f"--map wants OURS=THEIRS, not {text}")
        if ours in pairs:
            raise HistoryError(f"--map names {ours} twice")
        pairs[ours] = theirs
    return pairs
