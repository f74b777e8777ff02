"""Does a small Arrow or parquet file that unpacks to an enormous one end in one line, in bounded memory and disk?"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet
from test_packed_images import columns, configured, encoded

from diag_lib.images import growth, read_table

VALUE = bytes(8 * 2**20)
PEAK_MB = 1600
"""The run itself, `growth.FREE` once, and a margin; each bomb would take at least four times as much."""
READ = """
import re, sys
from pathlib import Path
from diag_lib import settings
from diag_lib.errors import UserError
from diag_lib.images import read_table
try:
    read_table(settings.load("base", {"dataset.root": sys.argv[1], "runtime.cache_dir": sys.argv[2]}))
except UserError as error:
    print(error)
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def repeated(value: bytes | str, n: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), pa.array([value]))


def parquet_of(file: Path, **cells: pa.Array) -> Path:
    parquet.write_table(pa.table(cells), file, compression="zstd", store_schema=False)
    return file


def one_image_many_times(folder: Path) -> Path:
    """2 KB that say 1.6 TB: a value in the dictionary and 200,000 references to it."""
    n = 200_000
    return parquet_of(folder / "bomb.parquet", image=repeated(VALUE, n), label=pa.array([0] * n))


def many_empty_images(folder: Path) -> Path:
    n = 20_000_000
    return parquet_of(folder / "bomb.parquet", image=repeated(b"", n), label=repeated("real", n))


def blank_pages(folder: Path) -> Path:
    """Zeros, which zstd makes thousands of times smaller."""
    data = pa.table({"image": pa.array([bytes(400 * 2**20)] * 4), "label": [0, 1] * 2})
    parquet.write_table(
        data, folder / "bomb.parquet", compression="zstd", use_dictionary=False, row_group_size=1
    )
    return folder / "bomb.parquet"


def blank_buffers(folder: Path, new: Callable[..., pa.RecordBatchFileWriter] = ipc.new_stream) -> Path:
    data = pa.table({"image": pa.array([VALUE] * 240), "label": [0] * 240})
    options = ipc.IpcWriteOptions(compression="zstd")
    with new(folder / "bomb.arrow", data.schema, options=options) as writer:
        writer.write_table(data)
    return folder / "bomb.arrow"


def many_rows(folder: Path) -> Path:
    n = 40_000_000
    return parquet_of(folder / "m.parquet", path=repeated("a.png", n), label=repeated("real", n))


def long_cells(folder: Path) -> Path:
    n = 900_000
    return parquet_of(folder / "m.parquet", path=repeated("a" * 30_000, n), label=repeated("real", n))


def one_long_cell(folder: Path) -> Path:
    return parquet_of(folder / "m.parquet", path=repeated("a" * 200_000_000, 9), label=repeated("real", 9))


BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "one image many times": (one_image_many_times, "taken for a bomb"),
    "blank pages": (blank_pages, "taken for a bomb"),
    "blank buffers, stream": (blank_buffers, "taken for a bomb"),
    "blank buffers, file": (lambda folder: blank_buffers(folder, ipc.new_file), "taken for a bomb"),
    "a table of many rows": (many_rows, "far more than a table of its size"),
    "a table of long cells": (long_cells, "far more than a table of its size"),
    "a table with one long cell": (one_long_cell, "longer than any path"),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_line_in_bounded_memory_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    make, said = BOMBS[name]
    (tmp_path / "in").mkdir()
    file = make(tmp_path / "in")
    assert file.stat().st_size < 4 * 2**20
    command = [sys.executable, "-c", READ, str(file), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line, peak = done.stdout.splitlines()
    assert said in line and line.startswith(file.name)
    assert int(peak) < PEAK_MB
    assert sum(one.stat().st_size for one in tmp_path.glob("cache/**/*.bin")) == 0


@pytest.mark.slow
def test_rows_without_an_image_cannot_fill_the_disk_with_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "FREE", 2**20)
    file = many_empty_images(tmp_path)
    with pytest.raises(Exception, match="taken for a bomb"):
        read_table(configured(file, tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.bin"))


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
@pytest.mark.parametrize("new", [ipc.new_stream, ipc.new_file])
def test_compressed_images_are_read_all_the_same(
    tmp_path: Path, compression: str | None, new: Callable[..., pa.RecordBatchFileWriter]
) -> None:
    data = pa.table(columns(0, 16, int))
    options = ipc.IpcWriteOptions(compression=compression)
    with new(tmp_path / "one.arrow", data.schema, options=options) as writer:
        writer.write_table(data, max_chunksize=5)
    frame = read_table(configured(tmp_path / "one.arrow", tmp_path / "cache")).frame
    assert sorted(Path(file).read_bytes() for file in frame["file"]) == sorted(
        encoded(at) for at in range(16)
    )
