"""Where do images that lie in a store (S3, ...) become files, and which of them are here already?

Everything else reads files, so what `dataset.root` names is copied once into `<cache>/remote/<key>/`, the key being
the URL. A copy carries a time that stands for its object's size and version: where the store still tells the same,
nothing is fetched. Nothing is contacted unless `dataset.remote` is true.
"""

import contextlib
import hashlib
import os
import posixpath
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from diag_lib.errors import UserError
from diag_lib.images import cache, manifest, shards
from diag_lib.images.sources import printable, stat_of
from diag_lib.progress import Bar
from diag_lib.settings import Settings

FOLDER = "remote"
MAX_OBJECTS = 10_000_000
MAX_DEPTH = 64
BLOCK = 8 * 2**20
"""Bytes that one request asks for; each of `WORKERS` threads holds one such block."""
WORKERS = 8
_TABLES = (".csv", ".tsv", ".txt", ".parquet")
_PACKED = (".arrow", ".tar", ".parquet")
_VERSIONS = (
    "ETag", "etag", "md5Hash", "blob_id", "content_md5", "Content-MD5", "checksum", "mtime", "LastModified",
    "last_modified", "Last-Modified", "updated", "created",
)  # fmt: skip
"""What the file systems of fsspec call the version of an object, the surest first."""
_EXTRAS = {"s3": "s3", "s3a": "s3"}


@dataclass(frozen=True, slots=True)
class _Object:
    """`path` as the store has it; `size` in bytes; `time_ns` stands for the version (see `_time_of`)."""

    path: str
    size: int
    time_ns: int


def require_allowed(settings: Settings) -> None:
    """Raise `UserError` when `dataset.root` is remote and `dataset.remote` does not say that it may be."""
    url = settings.dataset.root
    if isinstance(url, str) and not settings.dataset.remote:
        raise UserError(
            f"dataset.root: {url.partition(':')[0]}:// is remote and nothing was contacted; "
            "allow it with dataset.remote: true (--set dataset.remote=true)"
        )


def mirrored(settings: Settings, cache_dir: Path | None = None) -> Settings:
    """The settings with a remote `dataset.root` replaced by its copy, brought up to date; local ones unchanged.

    The copy goes into `runtime.cache_dir`, else into `cache_dir`.

    Raises
    ------
    UserError : it is not allowed, not there or not readable, has names that no folder can hold, or does not fit.
    """
    url = settings.dataset.root
    if isinstance(url, Path):
        return settings
    require_allowed(settings)
    place = settings.runtime.cache_dir or cache_dir or cache.DEFAULT_CACHE
    return settings.with_overrides({"dataset.root": str(_copied(url, place.absolute()))})


def _copied(url: str, place: Path) -> Path:
    store = _Store(url)
    if store.is_local and place.resolve().is_relative_to(Path(store.top).resolve()):
        raise UserError(
            "runtime.cache_dir lies inside the dataset, which is never written to; name another folder"
        )
    key = hashlib.blake2b(url.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    home = place / FOLDER / key
    root = home / "data" / store.name
    with cache.writing(home, "the remote dataset cannot be copied"), cache.alone(home):
        if store.is_folder:
            _bring_up_to_date(store, dict(store.walk()), home, root)
            return root
        first = store.only()
        _bring_up_to_date(store, first, home, root.parent, remove=False)
        if root.suffix.lower() in _TABLES and not shards.is_parquet_of_images(root):
            beside = store.named(manifest.relative_paths(root))
            _bring_up_to_date(store, {**beside, **first}, home, root.parent)
    return root


class _Store:
    """What lies at a URL. Whatever its library raises is one `UserError`."""

    def __init__(self, url: str) -> None:
        self.scheme = url.partition(":")[0]
        with self._told():
            from fsspec.core import url_to_fs

            # kept listings would hide changes, and a kept connection new credentials
            self.fs, path = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
            self.top = path.rstrip("/")
            self.info: Mapping[str, Any] = self.fs.info(self.top)
        self.is_local = self.scheme == "file"
        self.is_folder = self.info["type"] == "directory"
        last = posixpath.basename(self.top)
        self.name = cache.safe_name(last) if last else "root"
        if self.is_folder and self.scheme.startswith("http"):
            raise UserError(
                "dataset.root: a web address is no folder; name a table, .tar, .arrow or .parquet"
            )
        if not self.is_folder and os.path.splitext(last)[1].lower() not in {*_TABLES, *_PACKED}:  # noqa: PTH122
            raise UserError(
                f"dataset.root: {printable(last)[:80]} is neither a folder, a .csv/.parquet table nor a "
                ".tar/.arrow/.parquet with images"
            )

    def only(self) -> dict[str, _Object]:
        """The one file that the URL names."""
        return {self.name: self._object(self.info)}

    def walk(self) -> Iterator[tuple[str, _Object]]:
        """(name below the top, object) of everything in the folder, one listing at a time."""
        seen = 0
        waiting = [self.top]
        while waiting:
            folder = waiting.pop()
            listing = self._listing(folder)
            files = {entry["name"] for entry in listing if entry["type"] != "directory"}
            for entry in listing:
                seen += 1
                if seen > MAX_OBJECTS:
                    raise UserError(
                        f"dataset.root: holds more than {MAX_OBJECTS:,} objects; pack them into .tar shards"
                    )
                path = entry["name"]
                is_folder = entry["type"] == "directory"
                if path.rstrip("/") == folder and (not is_folder or _version_of(entry)):
                    continue  # the empty object by which some tools mark a folder
                name = _name_below(self.top, path)
                if is_folder and path in files:
                    raise UserError(
                        f"dataset.root: {printable(name)[:80]!r} is both an object and a folder; rename one"
                    )
                if is_folder:
                    waiting.append(path)
                else:
                    yield name, self._object(entry)

    def named(self, names: Sequence[str]) -> dict[str, _Object]:
        """Those of the named files beside the table that are there, by name."""
        above = posixpath.dirname(self.top)
        wanted = {posixpath.join(above, name): name for name in names}
        found: dict[str, _Object] = {}
        if self.scheme.startswith("http"):  # which cannot list
            with ThreadPoolExecutor(WORKERS) as pool:
                entries = zip(wanted, pool.map(self._info, wanted), strict=True)
                return {wanted[path]: self._object(entry) for path, entry in entries if entry is not None}
        for folder in sorted({posixpath.dirname(path) for path in wanted}):
            for entry in self._listing(folder, missing_ok=True):
                if entry["type"] != "directory" and entry["name"] in wanted:
                    found[wanted[entry["name"]]] = self._object(entry)
        return found

    def read(self, item: _Object, start: int, end: int) -> bytes:
        """Bytes start..end of an object; all of them or a `UserError`."""
        with self._told():
            content: bytes = self.fs.cat_file(item.path, start=start, end=end)
        if len(content) != end - start:
            raise UserError(
                f"dataset.root: {printable(posixpath.basename(item.path))[:80]!r} came with another length than was "
                "listed; let the dataset rest, then the same command continues"
            )
        return content

    def _listing(self, folder: str, *, missing_ok: bool = False) -> list[Mapping[str, Any]]:
        with self._told():
            try:
                listing: list[Mapping[str, Any]] = self.fs.ls(folder, detail=True)
            except FileNotFoundError:
                if missing_ok:
                    return []
                raise
        return listing

    def _info(self, path: str) -> Mapping[str, Any] | None:
        with self._told():
            try:
                entry: Mapping[str, Any] = self.fs.info(path)
            except FileNotFoundError:
                return None
        return entry

    def _object(self, entry: Mapping[str, Any]) -> _Object:
        version, size = _version_of(entry), entry.get("size")
        if not isinstance(size, int) or not version:
            name = printable(posixpath.basename(entry["name"]))[:80]
            raise UserError(
                f"dataset.root: the server tells neither change nor size of {name!r}, so a copy could go stale "
                "unseen; download it and name the folder"
            )
        return _Object(entry["name"], size, _time_of(version, size))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            extra = _EXTRAS.get(self.scheme)
            how = f"pip install 'diag-lib[{extra}]'" if extra else printable(str(error))[:200]
            raise UserError(
                f"dataset.root: {self.scheme}:// needs a package that is not installed; {how}"
            ) from None
        except FileNotFoundError:
            raise UserError(
                f"dataset.root: there is nothing at this {self.scheme}:// address; see its spelling"
            ) from None
        except PermissionError:
            raise UserError(
                f"dataset.root: the {self.scheme}:// store refuses access; see its credentials"
            ) from None
        except Exception as error:  # each library has its own kinds; its text may hold addresses and secrets
            raise UserError(
                f"dataset.root: the {self.scheme}:// store cannot be read ({type(error).__name__}); see network, "
                "credentials and endpoint, then the same command continues"
            ) from None


def _version_of(entry: Mapping[str, Any]) -> str:
    return next((str(entry[key]) for key in _VERSIONS if entry.get(key)), "")


def _time_of(version: str, size: int) -> int:
    """A time in ns, even seconds as every disk keeps them, that another version or size changes."""
    digest = hashlib.blake2b(f"{version}\0{size}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest) % 2**29 * 2 * 10**9


def _name_below(top: str, path: str) -> str:
    """The posix name below the top. Raises `UserError` for one that leaves it or that no disk can hold."""
    name = path[len(top) + 1 :] if path.startswith(f"{top}/") else ""
    parts = name.split("/")
    problem = ""
    if not name or ".." in parts:
        problem = "leaves the folder"
    elif "" in parts or "." in parts or "\0" in name:
        problem = "has an empty part"
    elif os.name == "nt" and any(character in name for character in '\\:*?"<>|'):
        problem = "has a character that this system does not allow"
    elif len(parts) > MAX_DEPTH or any(len(os.fsencode(part)) > 255 for part in parts):
        problem = "is too long or too deep"
    if problem:
        raise UserError(
            f"dataset.root: the name {printable(name or path)[:80]!r} {problem}; rename the object"
        )
    return name


# ---- the copy


def _bring_up_to_date(
    store: _Store, objects: Mapping[str, _Object], home: Path, folder: Path, *, remove: bool = True
) -> None:
    """Make `folder` hold these objects, and with `remove` nothing else."""
    _refuse_collisions(objects, home)
    if remove:
        _remove_others(folder, objects)
    missing = [
        (name, item)
        for name, item in objects.items()
        if stat_of(str(folder / name)) != (item.size, item.time_ns)
    ]
    if not missing:
        return
    partial = home / "partial"
    partial.mkdir(exist_ok=True)
    total = sum(item.size for _, item in missing)
    kept = sum(max(0, stat_of(str(_partial(partial, one[0], one[1])))[0]) for one in missing)
    cache.require_space(home, total - kept, "copying")
    described = f"copying {len(missing):,} remote files"
    with (
        Bar(total=total, initial=kept, desc=described, unit="B", unit_scale=True) as bar,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        waiting = iter(missing)
        while some := list(islice(waiting, 1000)):  # not a million tasks at once
            for fetched in pool.map(lambda one: _fetch(store, one[0], one[1], partial, folder), some):
                bar.update(fetched)
    shutil.rmtree(partial, ignore_errors=True)


def _fetch(store: _Store, name: str, item: _Object, partial: Path, folder: Path) -> int:
    """Copy one object, going on where a stopped copy ended; its time comes last and says that it is whole."""
    part = _partial(partial, name, item)
    begun = have = max(0, stat_of(str(part))[0])
    with part.open("ab") as file:
        while have < item.size:
            block = store.read(item, have, min(have + BLOCK, item.size))
            file.write(block)
            have += len(block)
    os.utime(part, ns=(item.time_ns, item.time_ns))
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)
    return item.size - begun


def _partial(partial: Path, name: str, item: _Object) -> Path:
    """Where the part of this very version of an object lies; never longer than the object."""
    text = f"{name}\0{item.time_ns}\0{item.size}"
    return partial / hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _refuse_collisions(objects: Iterable[str], home: Path) -> None:
    """Two objects that would be one file here, or a file and a folder of one name."""
    one_case = (home / "LOCK").exists()  # the file `lock` is there: this disk takes A and a for one name
    known: dict[str, str] = {}
    for name in objects:
        other = known.setdefault(name.casefold() if one_case else name, name)
        if other != name:
            raise UserError(
                f"dataset.root: the objects {printable(other)[:80]!r} and {printable(name)[:80]!r} would be one "
                "file on this disk; rename one"
            )
    for name in objects:
        above = posixpath.dirname(name)
        while above:
            if (above.casefold() if one_case else above) in known:
                raise UserError(
                    f"dataset.root: {printable(above)[:80]!r} is both an object and a folder; rename one"
                )
            above = posixpath.dirname(above)


def _remove_others(folder: Path, wanted: Mapping[str, _Object]) -> None:
    """Delete copies of objects that are gone; `folder` is ours alone."""
    for place, folders, files in os.walk(folder, topdown=False):
        below = Path(place).relative_to(folder)
        for name in files:
            if (below / name).as_posix() not in wanted:
                (Path(place) / name).unlink()
        for name in folders:
            with contextlib.suppress(OSError):  # not empty
                (Path(place) / name).rmdir()
