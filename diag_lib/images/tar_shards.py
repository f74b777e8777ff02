"""Which images and labels does a WebDataset shard hold?

Members that share a name up to its first dot are one sample: an image and a `.cls` (0, 1, real, fake) or a `.json`
with `label`. A member's name never becomes a path on disk. What no shard needs (links, devices, names that lead
out, sparse members) is refused by name, and so is an archive that ends before its end mark.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Self

from diag_lib.errors import UserError
from diag_lib.images.decode import MAX_BYTES, SUFFIX_FORMAT
from diag_lib.images.manifest import label_of
from diag_lib.images.samples import Sample
from diag_lib.images.shards import Shard
from diag_lib.images.sources import printable

MAX_TEXT = 2**20
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_DAMAGE = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError, MemoryError)


class _Header(tarfile.TarInfo):
    """A header whose own text stays small: tarfile reads it into memory whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _HEADERS and header.size > MAX_TEXT:
            raise tarfile.ReadError("a header larger than any name")
        return header


def read_tar(shard: Shard) -> Iterator[Sample]:
    """The samples of a shard, one after the other. Raises `UserError` for what is damaged or not allowed."""
    where = shard.shown
    key = ""
    parts: dict[str, bytes] = {}
    for name, content in _members(shard):
        stem, _, kind = PurePosixPath(name).name.partition(".")
        kind = kind.lower()
        sample = str(PurePosixPath(name).parent / stem)
        if sample != key and parts:
            yield _sample(key, parts, where)
            parts = {}
        key = sample
        if kind in parts:
            raise UserError(f"{where}: member {_shown(name)} stands twice; keep one of them")
        parts[kind] = content
    if parts:
        yield _sample(key, parts, where)


def _sample(key: str, parts: dict[str, bytes], where: str) -> Sample:
    images = [kind for kind in parts if _is_image(kind)]
    at = f"{where}, sample {_shown(key)}"
    if not images:
        return Sample.note(f"{where}/{key}", "no image in this sample")
    if len(images) > 1:
        raise UserError(f"{at}: has two images ({printable(', '.join(images))[:80]}); keep one of them")
    label, source = _label(parts, at)
    suffix = f".{images[0].rpartition('.')[2]}"
    return Sample(key, parts[images[0]], suffix, label, source)


def _label(parts: dict[str, bytes], at: str) -> tuple[int, str]:
    """(label, source) of a sample's `.cls` or `.json`."""
    if "cls" in parts:
        return label_of(parts["cls"].decode("utf-8", "replace"), at), ""
    if "json" not in parts:
        raise UserError(f'{at}: has no label; needed: a member .cls, or .json with "label"')
    try:
        record = json.loads(parts["json"])
    except (ValueError, RecursionError):
        raise UserError(f"{at}: its .json is not readable") from None
    if not isinstance(record, dict) or "label" not in record:
        raise UserError(f'{at}: its .json has no "label"')
    source = record.get("source", "")
    return label_of(str(record["label"]), at), source if isinstance(source, str) else ""


def _is_image(kind: str) -> bool:
    return f".{kind.rpartition('.')[2]}" in SUFFIX_FORMAT


def _members(shard: Shard) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every image and label; other plain members are passed over unread."""
    with shard.file.open("rb") as stream:
        archive = None
        while True:
            try:
                archive = archive or tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header)  # noqa: SIM115
                member = archive.next()
                if member is None:
                    _require_end(stream, archive.offset)
                    return
                archive.members.clear()  # type: ignore[attr-defined]  # it keeps every header it has seen
                content = _content(archive, member, shard.shown)
            except _DAMAGE as error:
                raise UserError(
                    f"{shard.shown}: cut off, damaged or compressed ({type(error).__name__}); "
                    "restore it, or write it as a plain .tar"
                ) from None
            if content is not None:
                yield member.name, content


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes | None:
    kind = PurePosixPath(member.name).name.partition(".")[2].lower()
    at = f"{where}: member {_shown(member.name)}"
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise UserError(f"{at} leads out of the archive; write the shard again without it")
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        raise UserError(f"{at} is no plain file; write the shard again without links, devices and holes")
    image = _is_image(kind)
    if not image and kind not in ("cls", "json"):
        return None
    limit = MAX_BYTES if image else MAX_TEXT
    if member.size > limit:
        raise UserError(f"{at} has {member.size:,} bytes; the limit is {limit:,}, remove it")
    stream = archive.extractfile(member)
    content = stream.read() if stream is not None else b""
    if len(content) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _require_end(stream: IO[bytes], offset: int) -> None:
    """tarfile takes a cut between or inside headers for the end; the end is a block of zeros."""
    stream.seek(offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no end mark")


def _shown(name: str) -> str:
    return repr(printable(name)[:80])
