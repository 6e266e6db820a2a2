"""A list that a page shows and that can be taken away: columns, rows, CSV and Parquet.

Owns how a list is written to a file. The only importer of pyarrow among pages.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from starlette.requests import Request
from starlette.responses import Response

from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.pages import utc

CSV, PARQUET = "csv", "parquet"
_TYPES = {
    "text": pa.string(), "time": pa.timestamp("ms", tz="UTC"), "number": pa.float64(),
    "count": pa.int64(),
}  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Column(NamedTuple):
    """A column: its name in a file, its title on a page, and its kind: a key of _TYPES."""

    name: str
    title: str
    kind: str = "text"
    link: str = ""  # a path that the value is put behind


@dataclass(frozen=True, slots=True)
class Sheet:
    """A list: rows have a value, or None, for each column's name."""

    name: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]

    def csv(self) -> bytes:
        """Return it as CSV (RFC 4180), times in UTC; no cell is a formula to a spreadsheet."""
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow([column.name for column in self.columns])
        for row in self.rows:
            writer.writerow([_cell(column, row[column.name]) for column in self.columns])
        return out.getvalue().encode()

    def parquet(self) -> bytes:
        """Return it as a Parquet file."""
        arrays = [
            pa.array([row[column.name] for row in self.rows], _TYPES[column.kind])
            for column in self.columns
        ]
        out = io.BytesIO()
        pq.write_table(pa.table(arrays, [column.name for column in self.columns]), out)
        return out.getvalue()


def exported(request: Request, sheet: Sheet, trail: AuditTrail) -> Response | None:
    """Answer with a file where ``format`` asks for one, None where not; it stands in the trail."""
    wanted = request.query_params.get("format", "")
    if wanted not in (CSV, PARQUET):
        return None
    trail.audit(request.state.person, "export", sheet.name, new=f"{len(sheet.rows)} rows, {wanted}")
    data = sheet.csv() if wanted == CSV else sheet.parquet()
    kind = "text/csv; charset=utf-8" if wanted == CSV else "application/vnd.apache.parquet"
    headers = {"content-disposition": f'attachment; filename="{sheet.name}.{wanted}"'}
    return Response(data, headers=headers, media_type=kind)


def _cell(column: Column, value: Any) -> Any:
    if value is None:
        return ""
    if column.kind == "time":
        return utc(value)
    if column.kind == "text" and str(value).startswith(_FORMULA):
        return "'" + str(value)
    return value
