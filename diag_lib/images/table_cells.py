"""What stands in the cells of a parquet table that names images, without letting a small file fill the memory?"""

import math
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from diag_lib.errors import UserError

MAX_BYTES = 4 * 2**30
"""All text of a table, as of one in CSV; of a small file `_FREE` bytes and `_FACTOR` times its size."""
MAX_CELL = 32_768
"""Bytes of a cell: more than any path has."""
_FREE, _FACTOR = 256 * 2**20, 100
_ROWS_FREE, _ROWS_A_BYTE = 1_000_000, 4
"""Every row names another image, so that a table shrinks by its format, but not to nothing."""
_BATCH = 16_384


def read(file: Path, name: str, meant: frozenset[str]) -> tuple[list[str], list[list[str]]]:
    """(lower-case names of all columns, cells); the cells of columns that are not in `meant` are empty.

    Raises `UserError` that begins with `name` for a table far larger than its file, pyarrow's own kinds for a damaged
    one.
    """
    with parquet.ParquetFile(file) as table:
        schema, rows = table.schema_arrow, table.metadata.num_rows
        columns = [column.strip().lower() for column in schema.names]
        wanted = [at for at, column in enumerate(columns) if column in meant and columns.count(column) == 1]
        names = [schema.names[at] for at in wanted]
        limit = min(MAX_BYTES, _FREE + _FACTOR * file.stat().st_size)
        _require(rows <= _ROWS_FREE + _ROWS_A_BYTE * file.stat().st_size, name, f"{rows:,} rows")
        _require(_pages(table.metadata, set(names)) <= limit, name, f"more than {limit:,} bytes")
        texts = [one for one in names if _is_text(schema.field(one).type)]
    cells: list[list[str]] = []
    with parquet.ParquetFile(file, read_dictionary=texts) as table:  # a repeated text stays one
        total = 0
        for batch in table.iter_batches(batch_size=_BATCH, columns=names, use_pandas_metadata=False):
            total += sum(_size(batch.column(at), name) for at in range(batch.num_columns))
            _require(total <= limit, name, f"more than {limit:,} bytes")
            found = {one: batch.column(one).to_pylist() for one in names}
            filled = [found.get(one) if at in wanted else None for at, one in enumerate(schema.names)]
            cells += [
                [_text(column[row]) if column is not None else "" for column in filled]
                for row in range(batch.num_rows)
            ]
    return columns, cells


def _require(fits: bool, name: str, found: str) -> None:
    if not fits:
        raise UserError(
            f"{name}: unpacks to {found}, far more than a table of its size names; write it as CSV"
        )


def _pages(meta: parquet.FileMetaData, names: set[str]) -> int:
    groups = (meta.row_group(at) for at in range(meta.num_row_groups))
    columns = (group.column(at) for group in groups for at in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema.partition(".")[0] in names)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _size(column: pa.Array, name: str) -> int:
    """Bytes of the cells as text, counted before they are made."""
    values = column.dictionary if pa.types.is_dictionary(column.type) else column
    if not _is_text(values.type):
        return int(column.nbytes)
    lengths = pc.fill_null(pc.binary_length(values), 0)
    if len(lengths) and pc.max(lengths).as_py() > MAX_CELL:
        raise UserError(f"{name}: a cell of more than {MAX_CELL:,} bytes, longer than any path; remove it")
    taken = lengths.take(column.indices) if pa.types.is_dictionary(column.type) else lengths
    return int(pc.sum(taken).as_py() or 0)


def _text(cell: object) -> str:
    missing = cell is None or cell is pd.NA or (isinstance(cell, float) and math.isnan(cell))
    return "" if missing else str(cell)
