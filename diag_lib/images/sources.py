"""Which images does the dataset hold, and what are their label, split and source?

Folders (`train|val[|test]` and `real|fake`, `0_real|1_fake`, `nature|ai` in any letter case, any other level
between or below them kept as `source`), a manifest (`manifest.py`) or packed images (`unpack.py`) become one table.
real = 0 and fake = 1 whatever order the folders sort in. Nothing is decoded here and nothing is ever written into
the dataset.
"""

# ruff: noqa: PTH116, PTH122, PTH123, PTH208
# One scandir pass over a million names, some of them not valid text, hence no `Path`.

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from diag_lib.errors import UserError
from diag_lib.images.decode import SUFFIX_FORMAT, looks_like_image
from diag_lib.settings import Settings

CLASS_LABELS = {"real": 0, "0_real": 0, "nature": 0, "fake": 1, "1_fake": 1, "ai": 1}
LABEL_NAMES = ("real", "fake")
SPLIT_SYNONYMS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
LAYOUT = (
    "expected <root>/train|val/[<source>/]real|fake (or 0_real|1_fake, nature|ai), "
    "a .csv/.parquet manifest, or .arrow/.parquet/.tar files with the images in them"
)
COLUMNS = ("path", "file", "label", "split", "source", "size", "mtime_ns")
FORMULA = ("=", "+", "-", "@")
"""What makes a spreadsheet take a cell for a formula."""
_JUNK_NAMES = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"}
_MAX_NOTES = 1_000_000


@dataclass(frozen=True)
class ImageTable:
    """All images of a dataset, sorted by split and path.

    `frame` columns: path (posix, relative, printable), file (absolute; may hold undecodable bytes), label
    (0 real, 1 fake), split ("train", "val", "test"), source ("" when there is none), size (bytes, -1 when
    missing), mtime_ns. `notes` lists what was ignored or assumed as (path, reason). `curated` counts what the
    curation file did. `fingerprint` changes when any listed file, its label or its split changes.
    """

    frame: pd.DataFrame
    notes: list[tuple[str, str]] = field(default_factory=list)
    curated: dict[str, int] = field(default_factory=dict)
    fingerprint: str = ""

    def split(self, name: str) -> pd.DataFrame:
        """The rows of a split, index 0..n-1."""
        return self.frame[self.frame["split"] == name].reset_index(drop=True)


@dataclass(frozen=True)
class Entry:
    """One image file before it has become a row."""

    path: str
    file: str
    label: int
    split: str
    source: str
    size: int
    mtime_ns: int


def read_table(settings: Settings) -> ImageTable:
    """The table of `dataset.root`.

    Raises
    ------
    UserError : the root is missing or empty, a split or class is absent, the manifest or curation file has a
        bad row; the line says what was found and what is expected.
    """
    from diag_lib.images import manifest, shards

    if isinstance(settings.dataset.root, str):
        from diag_lib.images import remote

        settings = remote.mirrored(settings)
    root = settings.dataset.folder
    refuse_missing(settings)
    notes: list[tuple[str, str]] = []
    if shards.is_packed(settings):
        from diag_lib.images import unpack  # with the readers of Arrow and tar, which folders do not need

        entries = unpack.read(settings, notes)
    elif root.is_dir():
        entries = _read_folders(root, settings, notes)
    elif root.suffix.lower() in (".csv", ".tsv", ".txt", ".parquet"):
        entries = manifest.read(root, settings, notes)
    else:
        raise UserError(
            f"dataset.root: {printable(root.name)} is neither a folder nor a .csv/.parquet manifest; {LAYOUT}"
        )
    curated: dict[str, int] = {}
    if settings.dataset.curation is not None:
        entries, curated = manifest.curate(settings.dataset.curation, entries, notes)
    _require_splits_and_classes(entries, settings)
    return _table(entries, notes, curated)


def refuse_missing(settings: Settings) -> None:
    """Raise `UserError` when `dataset.root` does not exist, or is remote without leave; contacts nothing."""
    if isinstance(settings.dataset.root, str):
        from diag_lib.images import remote

        remote.require_allowed(settings)
        return
    root = settings.dataset.folder
    if not root.exists():
        raise UserError(f"dataset.root: {printable(str(root))} does not exist; {LAYOUT}")


def printable(text: str) -> str:
    """A one-line printable form: control, bidirectional and undecodable characters become escapes.

    Different names stay different: the backslash itself is doubled.
    """
    if text.isprintable() and "\\" not in text:  # nearly every name, and there may be a million
        return text
    return "".join(character if _plain(character) else _escape(character) for character in text)


def shown_path(path: str) -> str:
    """A relative path as tables and reports name it: printable, and no formula for a spreadsheet that opens a CSV."""
    return printable(f"./{path}" if path.startswith(FORMULA) else path)


def _plain(character: str) -> bool:
    return character.isprintable() and character != "\\"


def _escape(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return "\\\\"
    if 0xDC80 <= code <= 0xDCFF:  # an undecodable byte, as os.fsdecode keeps it
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def stat_of(file: str) -> tuple[int, int]:
    """(size, mtime_ns) of a file, (-1, 0) when it cannot be found."""
    try:
        info = os.stat(file)
    except (OSError, ValueError):
        return -1, 0
    return info.st_size, info.st_mtime_ns


def split_names(present: Sequence[str], settings: Settings) -> dict[str, str]:
    """Lower-case folder or column value -> "train", "val" or "test".

    The configured names always count. A synonym counts only where the configured name is absent, and never
    for a name of another kind: a val_split `test` that is absent is a mistake, not the folder `val`.
    """
    lowered = {name.lower() for name in present}
    configured = {"train": settings.dataset.train_split.lower(), "val": settings.dataset.val_split.lower()}
    names = {name: split for split, name in configured.items()}
    for split, synonyms in SPLIT_SYNONYMS.items():
        if configured.get(split) in lowered or configured.get(split, split) not in synonyms:
            continue
        found = next((word for word in synonyms if word in lowered and word not in names), None)
        if found is not None:
            names[found] = split
    return names


# ---- folders


def _read_folders(root: Path, settings: Settings, notes: list[tuple[str, str]]) -> list[Entry]:
    files = list(_walk(str(root), notes))
    if not files:
        raise UserError(
            f"dataset.root: no images under {printable(str(root))} (found {_listing(root)}); {LAYOUT}"
        )
    folders = {part for parts, _ in files for part in parts[:-1]}
    splits = split_names(sorted(folders), settings)
    entries, without_split, without_class = [], 0, 0
    places: dict[tuple[str, ...], _Place] = {}
    for parts, found in files:
        place = places.get(parts[:-1]) or places.setdefault(parts[:-1], _place(parts[:-1], splits))
        if place.split is None or place.label is None:
            without_split += place.split is None
            without_class += place.label is None
            _note(
                notes, "/".join(parts), f"no {'split' if place.split is None else 'class'} folder in its path"
            )
            continue
        size, mtime = found.stat().st_size, found.stat().st_mtime_ns
        source = printable("/".join(place.source))
        entries.append(
            Entry(shown_path("/".join(parts)), found.path, place.label, place.split, source, size, mtime)
        )
    if not entries:
        what = "split folder (train, val)" if without_split >= without_class else "class folder (real, fake)"
        raise UserError(
            f"dataset.root: none of {len(files)} images under {printable(str(root))} has a {what} in "
            f"its path (found folders {_names(sorted(folders))}); {LAYOUT}"
        )
    return entries


@dataclass(frozen=True)
class _Place:
    split: str | None
    label: int | None
    source: tuple[str, ...]


def _place(folders: Sequence[str], splits: dict[str, str]) -> _Place:
    """Split, label and source of the folders above a file: the outermost split, the innermost class.

    ForenSynths has a category called "train" below its splits, hence the outermost.
    """
    lowered = [folder.lower() for folder in folders]
    split_at = next((i for i, name in enumerate(lowered) if name in splits), None)
    class_at = [i for i, name in enumerate(lowered) if name in CLASS_LABELS]
    if len({CLASS_LABELS[lowered[i]] for i in class_at}) > 1:
        path = printable("/".join(folders))
        raise UserError(
            f"dataset.root: folder {path!r} names both classes; rename one level or use a manifest"
        )
    taken = {split_at, class_at[-1] if class_at else None}
    source = tuple(folder for i, folder in enumerate(folders) if i not in taken)
    label = CLASS_LABELS[lowered[class_at[-1]]] if class_at else None
    return _Place(splits[lowered[split_at]] if split_at is not None else None, label, source)


def _walk(root: str, notes: list[tuple[str, str]]) -> Iterator[tuple[tuple[str, ...], "os.DirEntry[str]"]]:
    """(path parts, entry) of every image file under root, links followed, loops cut, in sorted order.

    A link may lead out of the root, as in sets made of links; it is noted, for pictures in a report may be private.
    """
    inside = os.path.realpath(root) + os.sep
    stack: list[tuple[str, tuple[str, ...], frozenset[tuple[int, int]]]] = [(root, (), frozenset())]
    while stack:
        folder, parts, above = stack.pop()
        try:
            info = os.stat(folder)
            identity = (info.st_dev, info.st_ino)
            if identity in above:
                _note(notes, "/".join(parts), "symbolic link loop")
                continue
            with os.scandir(folder) as listing:
                children = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            _note(notes, "/".join(parts), "folder cannot be read")
            continue
        below = []
        for child in children:
            where = (*parts, child.name)
            kind = _kind_of(child)
            if kind in ("folder", "image") and child.is_symlink() and _leads_out(child.path, inside):
                _note(notes, "/".join(where), "link out of the dataset's folder, followed")
            if kind == "folder":
                if os.path.splitext(child.name)[1].lower() in SUFFIX_FORMAT:
                    _note(notes, "/".join(where), "a folder, named like an image")
                below.append((child.path, where, above | {identity}))
            elif kind == "image":
                yield where, child
            elif kind:
                _note(notes, "/".join(where), kind)
        stack.extend(reversed(below))


def _leads_out(path: str, inside: str) -> bool:
    return not (os.path.realpath(path) + os.sep).startswith(inside)


def _kind_of(entry: "os.DirEntry[str]") -> str:
    """ "folder", "image", "" (ignored without a word) or the reason why it is ignored."""
    if entry.name.startswith(".") or entry.name.lower() in _JUNK_NAMES:
        return "" if entry.name.startswith("._") or entry.name == ".DS_Store" else "hidden or system file"
    try:
        if entry.is_dir():
            return "folder"
        if not entry.is_file():
            return "broken link" if entry.is_symlink() else "not a regular file"
        entry.stat()
    except OSError:
        return "broken link"
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in SUFFIX_FORMAT:
        return "image"
    return "image" if _sniffed(entry.path) else "not an image"


def _sniffed(file: str) -> bool:
    try:
        with open(file, "rb") as stream:
            return looks_like_image(stream.read(16))
    except OSError:
        return False


# ---- shared


def _require_splits_and_classes(entries: Sequence[Entry], settings: Settings) -> None:
    counts = Counter((entry.split, entry.label) for entry in entries)
    present = sorted({split for split, _ in counts})
    wanted = {"train": settings.dataset.train_split, "val": settings.dataset.val_split}
    for split, name in wanted.items():
        if split not in present:
            raise UserError(
                f"dataset.root: no split {name!r} (found {_names(present) or 'none'}); add it, or set "
                f"dataset.{split}_split to the name you use; {LAYOUT}"
            )
        for label, label_name in enumerate(LABEL_NAMES):
            if not counts[split, label]:
                other = counts[split, 1 - label]
                raise UserError(
                    f"dataset.root: split {name!r} has no {label_name} images (found {other} "
                    f"{LABEL_NAMES[1 - label]}); {LAYOUT}"
                )


def _table(entries: Sequence[Entry], notes: list[tuple[str, str]], curated: dict[str, int]) -> ImageTable:
    order = {"train": 0, "val": 1, "test": 2}
    ordered = sorted(entries, key=lambda entry: (order[entry.split], entry.path))
    digest = hashlib.sha256()
    for entry in ordered:
        digest.update(
            f"{entry.path}\0{entry.size}\0{entry.mtime_ns}\0{entry.label}\0{entry.split}\n".encode()
        )
    columns = {name: [getattr(entry, name) for entry in ordered] for name in COLUMNS}
    # `object`, not `str`: pandas' own strings cannot hold the undecodable bytes of a file name.
    frame = pd.DataFrame(
        {
            name: pd.Series(values, dtype="int64" if name in ("label", "size", "mtime_ns") else "object")
            for name, values in columns.items()
        }
    )
    return ImageTable(frame, notes, curated, digest.hexdigest())


def _note(notes: list[tuple[str, str]], path: str, reason: str) -> None:
    if len(notes) < _MAX_NOTES:
        notes.append((printable(path), reason))
    elif len(notes) == _MAX_NOTES:
        notes.append(("", f"further notes beyond the first {_MAX_NOTES:,} are not counted"))


def _listing(folder: Path) -> str:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return "an unreadable folder"
    return _names(names) if names else "nothing"


def _names(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(printable(name)[:60] for name in names[:most])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > most else shown
