"""`python -m tests.ladder`: climbs, and writes docs/ladder.md, its plot and bench.json's rows."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from tests.ladder.run import Size, climb, places, prepare, rows

ROOT = Path(__file__).parents[2]
MARKS = ("<!-- ladder -->\n", "<!-- /ladder -->")


def table(found: list[dict[str, Any]]) -> str:
    """Return the rows as a table, each with the share of the first step's p99 that it takes off."""
    lines = [
        "| step | p50 ms | p99 ms | p99.9 ms | CPU ms | takes off p99 |\n",
        "| --- | --- | --- | --- | --- | --- |\n",
    ]
    before = found[0]["value"]
    for row in found:
        share = (before - row["value"]) / (found[0]["value"] - found[-1]["value"] or 1.0)
        name = row["name"].split(": ")[1]
        off = "" if row is found[0] else f"{share:.1%}"
        figures = (row[key] for key in ("p50", "value", "p999", "cpu_ms"))
        lines.append(f"| {name} | {' | '.join(f'{x:.3f}' for x in figures)} | {off} |\n")
        before = row["value"]
    return "".join(lines)


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Write the plot: p50, p99 and p99.9 of each step, on a logarithmic scale."""
    matplotlib.rcParams["svg.hashsalt"] = "ladder"
    figure, axes = plt.subplots(figsize=(9, 5))
    names = [row["name"].split(": ")[1] for row in found]
    for key, label in (("p999", "p99.9"), ("value", "p99"), ("p50", "p50"), ("cpu_ms", "CPU")):
        axes.plot([row[key] for row in found], names, marker="o", label=label)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("ms a decision, inside the service")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Climb once."""
    parser = argparse.ArgumentParser(prog="tests.ladder")
    parser.add_argument("--rounds", type=int, default=Size().rounds)
    parser.add_argument("--payments", type=int, default=Size().payments)
    parser.add_argument("--into", type=Path, default=ROOT, help="where docs and bench.json are")
    args = parser.parse_args()
    size = Size(rounds=args.rounds, payments=args.payments)
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        transactions, now_ms = prepare(where, size)
        with places(where) as at:
            found = rows(climb(at, transactions, now_ms, size.rounds))
    text = table(found)
    print(text)
    load = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    when = time.strftime("%Y-%m-%d", time.gmtime())
    head = f"{when}, {load}, {found[0]['calls']} calls a step.\n\n"
    text += "\n![p50, p99, p99.9 and CPU of each step](ladder.svg)\n"
    page = args.into / "docs" / "ladder.md"
    before, _, rest = page.read_text().partition(MARKS[0])
    page.write_text(f"{before}{MARKS[0]}{head}{text}{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    draw(found, args.into / "docs" / "ladder.svg")
    report = args.into / "bench.json"
    kept = json.loads(report.read_text())
    others = [row for row in kept["rows"] if row["module"] != "ladder"]
    kept["rows"] = [*others, *({"module": "ladder", **row} for row in found)]
    report.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
