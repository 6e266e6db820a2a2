"""Dead letters on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fraud.v1 import label_pb2, transaction_pb2
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from rich.console import Console
from rich.table import Table

from fraudsvc.dead_letters import SECRET_REASONS, Letter

BYTES_SHOWN = 512
LABELS = "labels"


def print_letters(letters: Sequence[Letter]) -> None:
    """Print a table of letters."""
    table = Table(title=f"{len(letters)} dead letters")
    for name in ("number", "time", "place", "reason", "detail", "sent again"):
        table.add_column(name, overflow="fold")
    for number, content, resent in letters:
        table.add_row(
            str(number),
            content.letter_time.ToJsonString(),
            f"{content.topic}-{content.partition} @ {content.offset}",
            content.reason,
            content.detail,
            ", ".join(map(str, resent)),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def print_letter(letter: Letter, value: bytes) -> None:
    """Print a letter, and what it is about where that may be shown."""
    console = Console(highlight=False, markup=False)
    console.print(text_format.MessageToString(letter.content), end="")
    if letter.content.reason in SECRET_REASONS:
        console.print(f"record: {len(value)} bytes, not shown: they hold a card number, it seems")
        return
    try:
        kind = label_pb2.Label if letter.content.topic == LABELS else transaction_pb2.Transaction
        message = kind.FromString(value)
    except DecodeError:
        shown = value[:BYTES_SHOWN].hex(" ")
        console.print(f"record: {len(value)} bytes that are no {kind.__name__}: {shown}")
        return
    console.print("record:")
    console.print(text_format.MessageToString(message, indent=2), end="")
