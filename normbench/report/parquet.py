"""The single cells, and their epochs, as Parquet: typed columns for whoever goes on with the numbers.

    results.parquet   one row per cell, with the columns of results.csv
    epochs.parquet    one row per cell and epoch: cell_id epoch step lr train_loss top1 top5 loss eval_count
                      images_per_s train_seconds, and whatever else the rows hold

Schema 1, in the file's metadata as ``normbench.schema`` (``normbench.table`` says which of the two it is):

* counts (seed, batch, workers, epochs, epoch, step, …) are 64-bit integers, other measurements doubles, names and words
  strings; top1 and its like in percent, times in seconds, memory in MiB, as in results.csv;
* a configuration key is boolean, integer, double or string, whichever holds all its values; where they are of several
  kinds, a string as results.csv has it;
* what is missing is null; a cell that did not end ``ok`` has no final value of what its last epoch measures.

A change of a column's name, type or meaning changes the version; a new column does not.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench import records
from normbench.errors import StoreError
from normbench.report.epochs import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
_VERSION, _TABLE = b"normbench.schema", b"normbench.table"
# What columns hold that are known beforehand; others are looked at.
_AXES = {"arch": "word", "data": "word", "norm": "word", "lr": "number"} | dict.fromkeys(
    ("batch", "workers", "seed", "epochs"), "count"
)
_RESULTS = {"cell_id": "word", "status": "word"} | _AXES | records.KINDS
_EPOCHS = {"cell_id": "word"} | {key: records.KINDS.get(key, "number") for key in COLUMNS}
_TYPES = {"word": "string", "count": "Int64", "number": "float64", "share": "float64", "flag": "boolean"}


def results(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """results.parquet of ``records.rows``. The same bytes for the same rows."""
    header = list(rows[0]) if rows else list(records.COLUMNS)
    return _file("results", {column: [row[column] for row in rows] for column in header}, _RESULTS)


def epochs(columns: Mapping[str, Sequence[Any]]) -> bytes:
    """epochs.parquet of ``epochs.read``. The same bytes for the same rows."""
    return _file("epochs", columns, _EPOCHS)


def read(path: Path | str) -> pd.DataFrame:
    """The frame in one of the two files; integers, booleans and strings of pandas' kinds that know missing values.

    Raises StoreError if it cannot be read, is no file of normbench's, or has another schema version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    again = "make it again with python -m normbench.report"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"cannot read {str(path)!r}: {str(error).splitlines()[0]}; {again}") from None
    found = (table.schema.metadata or {}).get(_VERSION)
    if found is None:
        raise StoreError(f"{str(path)!r} has no {_VERSION.decode()}; expected a file that normbench.report wrote")
    if found != str(SCHEMA).encode():
        raise StoreError(f"{str(path)!r} has schema {found.decode()}, this normbench reads schema {SCHEMA}; {again}")
    return table.to_pandas()


def _file(name: str, columns: Mapping[str, Sequence[Any]], kinds: Mapping[str, str]) -> bytes:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = pd.DataFrame({column: _typed(values, kinds.get(column)) for column, values in columns.items()})
    table = pa.Table.from_pandas(frame, preserve_index=False)
    told = {_VERSION: str(SCHEMA).encode(), _TABLE: name.encode()}
    data = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **told}), data, compression="zstd")
    return data.getvalue()


def _typed(values: Sequence[Any], kind: str | None) -> Any:
    """An array of pandas'. What is not of the kind is missing."""
    import pandas as pd

    kind = kind or _kind(values)
    held = values if _are_all(kind, values) else [value if _FITS[kind](value) else None for value in values]
    if kind == "word":
        held = [None if value is None else _text(value) for value in held]
    return pd.array(held, dtype=_TYPES[kind])  # type: ignore[call-overload]


def _kind(values: Sequence[Any]) -> str:
    """The narrowest kind that holds all values; words where there is none."""
    there = [value for value in values if not _missing(value)]
    kinds = ("flag", "count", "number") if there else ()
    return next((kind for kind in kinds if _are_all(kind, there)), "word")


def _are_all(kind: str, values: Sequence[Any]) -> bool:
    """Of this kind; quickly for hundreds of thousands of floats."""
    if kind in ("number", "share") and set(map(type, values)) == {float}:
        return True
    return all(map(_FITS[kind], values))


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_count(value)


_FITS = {
    "flag": _is_flag,
    "count": _is_count,
    "number": _is_number,
    "share": _is_number,
    "word": lambda value: not _missing(value),
}


def _text(value: Any) -> str:
    """As results.csv has it."""
    if isinstance(value, bool | list | dict):
        return json.dumps(value)
    return str(value)
