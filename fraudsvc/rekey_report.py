"""What `rekey` tells a person: how far it is, and what it did."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from fraudsvc.rekey import Rekeyed


@contextlib.contextmanager
def progress() -> Iterator[Callable[[int, int], None]]:
    """Yield what is to be told of bytes done, and of how many."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("log", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_rekeyed(found: Rekeyed, log: str) -> None:
    """Say what came of it."""
    lines = [
        f"{found.decided} payments, {found.labels} labels and {found.others} events of a history"
        f" or of labels → {log}"
    ]
    if found.lost:
        lines.append(f"{found.lost} records left out, the first of them at {found.first_lost}")
    lines.append(f"ids of decisions before position {found.end} are of the old secret")
    for line in lines:
        Console(highlight=False, soft_wrap=True).print(line, markup=False)
