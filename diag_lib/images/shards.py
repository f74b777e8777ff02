"""Which files of a packed dataset hold the images, and which split is each of them?

Packed are Hugging Face datasets on disk (`.arrow` as `save_to_disk` writes them, `.parquet`) and WebDataset
shards (`.tar`), in the root or one folder below it. A folder's name, else a word of the file's name, is the split.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diag_lib.errors import UserError
from diag_lib.images.sources import CLASS_LABELS, SPLIT_SYNONYMS, printable
from diag_lib.settings import Settings

KINDS = (".arrow", ".parquet", ".tar")
MAX_JSON = 16 * 2**20
_OF = re.compile(r"(?P<stem>.*)-(?P<at>\d{5})-of-(?P<count>\d{5})")


@dataclass(frozen=True)
class Shard:
    """`file` on disk; `name` posix below the root, without suffix; `split` is a word of its name, "" without one."""

    file: Path
    name: str
    split: str

    @property
    def shown(self) -> str:
        """What messages call it."""
        return printable(f"{self.name}{self.file.suffix}")


def is_packed(settings: Settings) -> bool:
    """Whether `dataset.root` holds its images in shards.

    A folder named like a split or a class that holds no shard makes it a dataset of folders, whatever lies beside.
    """
    root = settings.dataset.folder
    if root.is_file():
        return root.suffix.lower() in (".arrow", ".tar") or is_parquet_of_images(root)
    known = _split_words(settings) | set(CLASS_LABELS)
    packed = bool(_files(root))
    for folder in _folders(root):
        here = bool(_files(folder))
        if not here and any(one.name.lower() in known for one in (folder, *_folders(folder))):
            return False
        packed = packed or here
    return packed


def find_shards(settings: Settings) -> list[Shard]:
    """All shards, sorted by name. Raises `UserError` when one is missing or they are of several kinds."""
    root = settings.dataset.folder
    if root.is_file():
        return [Shard(root, root.stem, "")]
    words = _split_words(settings)
    shards = []
    for folder in (root, *_folders(root)):
        files = _files(folder)
        _require_all(files)
        for file in files:
            below = file.relative_to(root)
            split = _split_of(below, words)
            shards.append(Shard(file, below.with_suffix("").as_posix(), split))
    kinds = sorted({shard.file.suffix.lower() for shard in shards})
    if len(kinds) > 1:
        raise UserError(
            f"dataset.root: {printable(root.name)} holds {' and '.join(kinds)} files; keep one kind in it"
        )
    return sorted(shards, key=lambda shard: shard.name)


def is_parquet_of_images(file: Path) -> bool:
    """Whether it is a parquet file without the column `path` of a manifest, but with one of images."""
    if file.suffix.lower() != ".parquet":
        return False
    from pyarrow import parquet

    from diag_lib.images.columnar import image_column

    try:
        schema = parquet.read_schema(file)
    except Exception:  # pyarrow raises its own kinds; the manifest's reader says that it is damaged
        return False
    return "path" not in {name.lower() for name in schema.names} and image_column(schema) is not None


def _split_words(settings: Settings) -> set[str]:
    words = {word for synonyms in SPLIT_SYNONYMS.values() for word in synonyms}
    return words | {settings.dataset.train_split.lower(), settings.dataset.val_split.lower()}


def _split_of(below: Path, words: set[str]) -> str:
    *folders, name = below.parts
    candidates = [*folders, Path(name).stem, *re.split(r"[-_.]", Path(name).stem)]
    return next((word.lower() for word in candidates if word.lower() in words), "")


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(one for one in folder.iterdir() if not one.name.startswith(".") and one.is_dir())
    except OSError:
        return []


def _files(folder: Path) -> list[Path]:
    """The shards of one folder: those that `state.json` lists, or all but the caches that `datasets` leaves."""
    state = folder / "state.json"
    if state.is_file() and (listed := _listed(state)):
        return [folder / name for name in listed]
    try:
        files = [one for one in folder.iterdir() if one.suffix.lower() in KINDS and one.is_file()]
    except OSError:
        return []
    return sorted(file for file in files if not file.name.startswith((".", "cache-", "tmp")))


def _listed(state: Path) -> list[str]:
    """The data files that a `state.json` of `save_to_disk` names, [] when it is another program's."""
    content = read_json(state)
    files = content.get("_data_files") if isinstance(content, dict) else None
    if not isinstance(files, list):
        return []
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in files]
    where = printable(f"{state.parent.name}/{state.name}")
    found: list[str] = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise UserError(f"{where}: names a data file {printable(str(name))[:80]!r} outside its folder")
        if not (state.parent / name).is_file():
            raise UserError(
                f"{where}: names the data file {printable(name)[:80]!r}, which is missing; restore it"
            )
        found.append(name)
    if isinstance(content, dict) and content.get("_indices_data_files"):
        raise UserError(f"{where}: is a selection of rows; save it again after flatten_indices()")
    return found


def read_json(file: Path) -> object:
    """A small JSON file, None when it is none."""
    try:
        return json.loads(file.read_bytes()) if file.stat().st_size <= MAX_JSON else None
    except (OSError, ValueError, RecursionError):
        return None


def _require_all(files: Sequence[Path]) -> None:
    """`train-00001-of-00003` says how many there are."""
    names = {file.stem for file in files}
    for name in _expected(names):
        if name not in names:
            raise UserError(f"dataset.root: the shard {printable(name)[:80]!r} is missing; restore it")


def _expected(names: set[str]) -> Iterator[str]:
    for stem, count in sorted({(m["stem"], m["count"]) for name in names if (m := _OF.fullmatch(name))}):
        yield from (f"{stem}-{at:05d}-of-{count}" for at in range(int(count)))
