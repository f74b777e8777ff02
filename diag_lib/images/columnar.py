"""Which images and labels does an Arrow or parquet file hold?

The image column is binary, or a struct with a binary `bytes`, as Hugging Face's `Image` feature is stored. Labels
are read by name wherever the schema names its classes, so that their order does not matter. Only pyarrow is needed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc, parquet

from diag_lib.errors import UserError
from diag_lib.images import growth
from diag_lib.images.decode import MAX_BYTES, SUFFIX_FORMAT
from diag_lib.images.manifest import label_of
from diag_lib.images.samples import Sample, sniffed_suffix
from diag_lib.images.shards import Shard, read_json
from diag_lib.images.sources import printable

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")
LABEL_NAMES = ("label", "labels", "class", "cls", "target")
SOURCE_NAMES = ("source", "generator")
MAX_TEXT = 4096
"""Characters of a label, a source or an image's own path."""
_FILE = b"ARROW1\0\0"
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream; without it the rest of the rows is missing


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str
    source: str | None
    classes: list[str] | None


def read_columnar(shard: Shard) -> Iterator[Sample]:
    """The rows of a file, one after the other. Raises `UserError` for what is damaged, missing or not allowed."""
    where = shard.shown
    columns, first = None, 0
    batches = _batches(shard)
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)  # before any offset of the file is followed
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            raise UserError(
                f"{where}: cut off or damaged ({type(error).__name__}); restore the file"
            ) from None
        if columns is None:
            columns = _columns(batch.schema, shard)
            if columns.classes is None and pa.types.is_integer(batch.schema.field(columns.label).type):
                yield Sample.note(where, "labels without class names, taken as 0 = real, 1 = fake")
        yield from _rows(batch, columns, where, first)
        first += batch.num_rows


def image_column(schema: pa.Schema) -> str | None:
    """The column of images: the one that the `Image` feature names, else one with a usual name."""
    fitting = [field.name for field in schema if _holds_bytes(field.type)]
    features = _features(schema)
    declared = [name for name in fitting if _type_of(features.get(name)) == "Image"]
    usual = [name for known in IMAGE_NAMES for name in fitting if name.lower() == known]
    return next(iter([*declared, *usual]), None)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_bytes(kind.field(at).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _batches(shard: Shard) -> Iterator[pa.RecordBatch]:
    file = shard.file
    if file.suffix.lower() == ".parquet":
        with parquet.ParquetFile(file) as table:
            columns = _columns(table.schema_arrow, shard)
            names = [name for name in (columns.image, columns.label, columns.source) if name]
            growth.refuse_pages(table.metadata, set(names), shard.shown, file.stat().st_size)
            for group in range(table.num_row_groups):  # all at once, pyarrow would hold the whole file
                # row by row, for a value that is repeated costs the file nothing
                yield from table.iter_batches(batch_size=1, row_groups=[group], columns=names)
        return
    with pa.memory_map(str(file)) as mapped:
        start = 0
        if mapped.size() >= len(_FILE) and mapped.read(len(_FILE)) == _FILE:
            start = len(_FILE)  # an Arrow file is a stream between its mark and a directory
            ipc.open_file(mapped)  # the directory is there, so it is not cut off
        elif mapped.size() < len(_END) or _last(mapped) != _END:
            raise pa.ArrowInvalid("no end of stream")
        mapped.seek(start)
        growth.refuse_buffers(mapped, shard.shown)
        mapped.seek(start)
        with ipc.open_stream(mapped) as stream:
            yield from stream


def _last(mapped: pa.MemoryMappedFile) -> bytes:
    mapped.seek(mapped.size() - len(_END))
    return bytes(mapped.read(len(_END)))


def _columns(schema: pa.Schema, shard: Shard) -> _Columns:
    where = shard.shown
    found = ", ".join(printable(name)[:40] for name in schema.names[:12]) or "none"
    image = image_column(schema)
    if image is None:
        raise UserError(
            f"{where}: no column of images (found {found}); needed: image, as bytes or a struct {{bytes, path}}"
        )
    features = _features(schema) or _beside(shard.file)
    declared = [name for name in schema.names if _type_of(features.get(name)) == "ClassLabel"]
    usual = [name for known in LABEL_NAMES for name in schema.names if name.lower() == known]
    label = next(iter([*[name for name in usual if name in declared], *usual, *declared]), None)
    if label is None:
        raise UserError(
            f"{where}: no column of labels (found {found}); needed: label, of the classes real and fake"
        )
    twice = next((name for name in (image, label) if schema.names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: the column {printable(twice)[:40]!r} stands twice; keep one of them")
    source = next(
        (n for n in schema.names if n.lower() in SOURCE_NAMES and _is_text(schema.field(n).type)), None
    )
    return _Columns(image, label, source, _classes(features.get(label), where))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _classes(feature: object, where: str) -> list[str] | None:
    """The names of a ClassLabel; each must be known before the first image is written."""
    names = feature.get("names") if isinstance(feature, dict) and _type_of(feature) == "ClassLabel" else None
    if not isinstance(names, list):
        return None
    texts = [str(name) for name in names]
    for name in texts:
        label_of(name, f"{where}: its classes")
    return texts


def _features(schema: pa.Schema) -> dict[str, Any]:
    raw = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(raw)["info"]["features"] if raw else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _beside(file: Path) -> dict[str, Any]:
    info = read_json(file.parent / "dataset_info.json")
    features = info.get("features") if isinstance(info, dict) else None
    return features if isinstance(features, dict) else {}


def _type_of(feature: object) -> object:
    return feature.get("_type") if isinstance(feature, dict) else None


def _rows(batch: pa.RecordBatch, columns: _Columns, where: str, first: int) -> Iterator[Sample]:
    images = batch.column(columns.image)
    paths: Any = None
    if pa.types.is_struct(images.type):
        named = images.type.get_field_index("path") >= 0
        paths = pc.struct_field(images, "path") if named else None
        images = pc.struct_field(images, "bytes")
    labels = batch.column(columns.label)
    sources = batch.column(columns.source) if columns.source else None
    for at in range(batch.num_rows):
        row = f"{where}, row {first + at}"
        buffer = images[at].as_buffer()
        path = paths[at].as_py() if paths is not None else None
        path = path if isinstance(path, str) else ""
        source = (sources[at].as_py() or "") if sources is not None else ""
        label = labels[at].as_py()
        if any(isinstance(text, str) and len(text) > MAX_TEXT for text in (path, source, label)):
            raise UserError(
                f"{row}: a label, source or path of more than {MAX_TEXT:,} characters; shorten it"
            )
        if buffer is None and path:
            raise UserError(
                f"{row}: names {printable(path)[:80]!r} but does not hold it; save the images embedded"
            )
        if buffer is not None and buffer.size > MAX_BYTES:
            raise UserError(
                f"{row}: an image of {buffer.size:,} bytes; the limit is {MAX_BYTES:,}, remove it"
            )
        content = b"" if buffer is None else buffer.to_pybytes()
        suffix = Path(path.replace("\\", "/")).suffix.lower()
        yield Sample(
            name=Path(path.replace("\\", "/")).stem,
            image=content,
            suffix=suffix if suffix in SUFFIX_FORMAT else sniffed_suffix(content),
            label=_label(label, columns.classes, row),
            source=source,
        )


def _label(value: object, classes: list[str] | None, row: str) -> int:
    if classes is not None and isinstance(value, int):
        if not 0 <= value < len(classes):
            raise UserError(
                f"{row}: label {value} has no class; the classes are {printable(', '.join(classes))}"
            )
        return label_of(classes[value], row)
    return label_of("" if value is None else str(value), row)
