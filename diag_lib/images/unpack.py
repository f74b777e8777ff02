"""Where do images that lie in shards become files, and which of them are there already?

Everything else addresses an image by its path, so each shard is unpacked once, sample by sample, into
`<cache>/unpacked/<key>/<shard>/`; the key is what the system says about the shards, so changed ones are unpacked
anew. A shard counts as done when its list is written; a stopped one goes on with the files it lacks.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from diag_lib.errors import UserError
from diag_lib.images import cache, growth, manifest
from diag_lib.images.cache import safe_name
from diag_lib.images.columnar import read_columnar
from diag_lib.images.readability import write_parquet
from diag_lib.images.samples import Sample
from diag_lib.images.shards import Shard, find_shards
from diag_lib.images.sources import Entry, printable, shown_path, split_names, stat_of
from diag_lib.images.tar_shards import read_tar
from diag_lib.progress import Bar
from diag_lib.settings import Settings

FOLDER = "unpacked"
_VERSION = 1
_COLUMNS = ("file", "label", "source", "size", "remark")


def read(settings: Settings, notes: list[tuple[str, str]]) -> list[Entry]:
    """The entries of a packed dataset, unpacked where they are not yet.

    Raises
    ------
    UserError : a shard is missing, damaged or holds what is not allowed; the cache cannot be written.
    """
    shards = find_shards(settings)
    named = any(shard.split for shard in shards)
    splits = split_names(sorted({shard.split for shard in shards}), settings) if named else {}
    if named:
        wanted = [shard for shard in shards if shard.split in splits]
        notes += [(s.shown, "no split in its name, not read") for s in shards if s.split not in splits]
    else:
        wanted = shards
    home = _home(settings, shards)
    if home.resolve().is_relative_to(settings.dataset.folder.resolve()):
        raise UserError(
            "runtime.cache_dir lies inside the dataset, which is never written to; name another folder"
        )
    with cache.writing(home, "images cannot be unpacked"), cache.alone(home):
        tables = _unpacked(home, wanted)
    entries = []
    for shard, rows in zip(wanted, tables, strict=True):
        split = splits.get(shard.split, "")
        folder = home / safe_name(shard.name)
        for file, label, source, size, remark in rows.itertuples(index=False, name=None):
            if remark:
                notes.append((printable(file), remark))
                continue
            _, mtime = stat_of(str(folder / file))
            shown = shown_path(f"{safe_name(shard.name)}/{file}")
            entries.append(Entry(shown, str(folder / file), label, split, printable(source), size, mtime))
    if not entries:
        raise UserError(
            f"dataset.root: the {len(wanted)} files of {printable(settings.dataset.folder.name)} hold no images"
        )
    if not named:
        share = f"{manifest.VAL_SHARE:.0%} of each class and source was set aside as validation"
        notes.append((printable(settings.dataset.folder.name), f"no split in any name: {share}"))
        entries = manifest.assign_splits(entries, settings.training.seed)
    return entries


def _home(settings: Settings, shards: Sequence[Shard]) -> Path:
    """The folder of these very shards: their place, names, sizes and times of change."""
    identity = [(shard.name, *stat_of(str(shard.file))) for shard in shards]
    text = repr((_VERSION, os.fsencode(settings.dataset.folder.resolve()), identity))
    key = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    return (settings.runtime.cache_dir or cache.DEFAULT_CACHE).absolute() / FOLDER / key


def _unpacked(home: Path, shards: Sequence[Shard]) -> list[pd.DataFrame]:
    known = [_done(home, shard) for shard in shards]
    missing = [shard for shard, rows in zip(shards, known, strict=True) if rows is None]
    total = sum(max(0, stat_of(str(shard.file))[0]) for shard in missing)
    cache.require_space(home, total, "unpacking")
    with Bar(total=total, desc="unpacking images", unit="B", unit_scale=True, disable=not missing) as bar:
        return [
            _unpack(home, shard, bar) if rows is None else rows
            for shard, rows in zip(shards, known, strict=True)
        ]


def _done(home: Path, shard: Shard) -> pd.DataFrame | None:
    """The list of an unpacked shard, None when it or one of its files is not there as it was written."""
    folder = home / safe_name(shard.name)
    try:
        rows = pd.read_parquet(_list_of(folder), columns=list(_COLUMNS))
    except Exception:  # whatever a missing or damaged file makes pyarrow raise: it is only a cache
        return None
    files = rows[rows["remark"] == ""]
    sizes = [stat_of(str(folder / file))[0] for file in files["file"]]
    return rows if sizes == files["size"].tolist() else None


def _unpack(home: Path, shard: Shard, bar: Bar) -> pd.DataFrame:
    folder = home / safe_name(shard.name)
    folder.mkdir(parents=True, exist_ok=True)
    _list_of(folder).unlink(missing_ok=True)
    status = shard.file.stat()
    read = read_tar if shard.file.suffix.lower() == ".tar" else read_columnar
    rows: list[tuple[str, int, str, int, str]] = []
    begun, limit, grown = bar.n, growth.limit_of(status.st_size), 0
    try:
        for sample in read(shard):
            grown += max(growth.FILE_COST, len(sample.image or b""))
            if grown > limit:
                growth.refuse(shard.shown, status.st_size)
            if sample.image is None:
                rows.append((sample.name, -1, "", -1, sample.remark))
                continue
            name = _file_name(len(rows), sample)
            _put(folder / name, sample.image, status.st_mtime_ns)
            rows.append((name, sample.label, sample.source, len(sample.image), ""))
            bar.update(min(len(sample.image), begun + status.st_size - bar.n))
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)  # a shard that is refused leaves nothing behind
        raise
    bar.update(begun + status.st_size - bar.n)
    frame = pd.DataFrame(rows, columns=list(_COLUMNS))
    write_parquet(frame.astype({"label": "int64", "size": "int64"}), _list_of(folder))
    return frame


def _put(file: Path, content: bytes, mtime_ns: int) -> None:
    """Write an image with its shard's time, which comes last and says that the file is whole."""
    if stat_of(str(file)) == (len(content), mtime_ns):
        return
    file.write_bytes(content)
    os.utime(file, ns=(mtime_ns, mtime_ns))


def _list_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.list.parquet")


def _file_name(number: int, sample: Sample) -> str:
    key = safe_name(sample.name, slash="_")[-60:] if sample.name else ""
    return f"{number:07d}{'_' if key else ''}{key}{sample.suffix}"
