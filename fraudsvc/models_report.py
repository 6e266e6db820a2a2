"""Owns how bundles and their manifests are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table


class Row(NamedTuple):
    """A bundle of the shelf: its id, what it is made of, its thresholds, and if it is served."""

    bundle_id: str
    layers: str
    review: float
    decline: float
    served: bool


def print_models(rows: Sequence[Row], *, pinned: bool) -> None:
    """Print a table, oldest first."""
    table = Table("model", "layers", "review from", "decline from", "served")
    for row in rows:
        served = ("pinned" if pinned else "yes") if row.served else ""
        table.add_row(
            row.bundle_id, row.layers, f"{row.review:.6f}", f"{row.decline:.6f}", served
        )  # fmt: skip
    Console().print(table)


def print_state(lines: Sequence[str]) -> None:
    """Say what stopped learning, who is not trusted, and which alarms were raised last."""
    console = Console(highlight=False, markup=False)
    for line in lines:
        console.print(line, soft_wrap=True)


def print_change(action: str, served: str, before: str) -> None:
    """Say what is served now."""
    Console(highlight=False).print(f"{action}: {served} is served, {before or 'none'} was before")


def print_manifest(manifest: Mapping[str, Any]) -> None:
    """Print a manifest as JSON."""
    Console().print_json(json.dumps(manifest), sort_keys=True)


def print_difference(
    before: Mapping[str, Any], after: Mapping[str, Any], rows: Sequence[tuple[str, Any, Any]]
) -> None:
    """Print what differs between two manifests."""
    table = Table("", str(before["bundle_id"]), str(after["bundle_id"]))
    for name, old, new in rows:
        table.add_row(name, json.dumps(old, indent=1), json.dumps(new, indent=1))
    Console().print(table)
