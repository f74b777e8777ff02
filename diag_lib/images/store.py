"""Which readable images does a split hold, and what are their pixels in a given view?

Every file is decoded once to find out whether it can be read; the answer is cached by file identity (path,
size, modification time). Fitted images are kept in memory while they fit, else decoded anew by threads.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.images import hashing, views
from diag_lib.images.decode import MAX_PIXELS, DecodeError, Pixels, decode
from diag_lib.images.readability import Readability
from diag_lib.images.sources import ImageTable, printable, read_table
from diag_lib.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

MEMORY_LIMIT = 2 * 1024**3
"""Bytes of fitted images that one image set keeps in memory."""

Ints = npt.NDArray[np.int64]
Item = TypeVar("Item")
Result = TypeVar("Result")


class _Pixels:
    """Fitted images by row of a table: from memory, or decoded anew by threads. Shared between subsets."""

    def __init__(
        self, files: Sequence[str], labels: Ints, mode: str, size: int, wide: int, change: Any, workers: int
    ) -> None:
        self.files, self.labels, self.mode, self.change = files, labels, mode, change
        self.sizes = (size, wide) if wide else (size,)
        self.workers = workers
        fits = len(files) * 3 * sum(side * side for side in self.sizes) <= MEMORY_LIMIT
        self._memory = (
            [np.empty((len(files), side, side, 3), np.uint8) for side in self.sizes] if fits else None
        )
        self._known = np.zeros(len(files), dtype=bool)

    def put(self, row: int, pixels: Pixels) -> None:
        """Keep what has been decoded anyway."""
        if self._memory is not None and not self._known[row]:
            for memory, fitted in zip(self._memory, self._fitted(row, pixels), strict=True):
                memory[row] = fitted
            self._known[row] = True

    def get(self, rows: Ints, wide: bool = False) -> Pixels:
        """uint8 (B, side, side, 3) of the square of the set, or of the larger one that crops are cut from."""
        which = 1 if wide else 0
        if self._memory is None:
            return np.stack(
                parallel(lambda row: self._fitted(row, self._decoded(row))[which], rows, self.workers)
            )
        missing = np.unique(rows[~self._known[rows]])
        if len(missing):
            parallel(lambda row: self.put(row, self._decoded(row)), missing, self.workers)
        return self._memory[which][rows]

    def _fitted(self, row: int, pixels: Pixels) -> list[Pixels]:
        if self.change is not None:
            pixels = self.change(pixels, int(self.labels[row]))
        return [views.fit(pixels, self.mode, side) for side in self.sizes]

    def _decoded(self, row: int) -> Pixels:
        try:
            return decode(self.files[row])
        except DecodeError as error:
            raise UserError(
                f"image {printable(Path(self.files[row]).name)!r}: {error.reason}, though it was readable "
                "at the start; do not change the dataset while it is in use"
            ) from None


class ImageSet:
    """The readable images of a split, and their pixels.

    Attributes: `frame` (columns of `ImageTable.frame`, index 0..n-1), `labels` int64 (n,), `unreadable`
    (DataFrame path, reason), `image_size` (pixels), `n_views`, `transform` (what pixels depend on beside the
    file).
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        unreadable: pd.DataFrame,
        rows: Ints,
        pixels: _Pixels,
        augment: str,
        seed: int,
        thumbnails: Callable[[Ints], hashing.Thumbnails],
        transform: dict[str, Any],
    ) -> None:
        self.frame = frame
        self.unreadable = unreadable
        self.labels: Ints = frame["label"].to_numpy(dtype=np.int64)
        self.image_size = pixels.sizes[0]
        self.augment = augment
        self.n_views = views.N_VIEWS[augment]
        self.transform = transform
        self._rows, self._pixels, self._seed = rows, pixels, seed
        self._keys = views.path_keys(frame["path"].tolist(), seed)
        self._thumbnails = thumbnails
        self._groups: Ints | None = None

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def groups(self) -> Ints:
        """Group number (n,) of each image; copies of one picture (see `hashing`) share a number."""
        if self._groups is None:
            self._groups = hashing.picture_groups(self._thumbnails(self._rows))
        return self._groups

    def pixels(self, indices: npt.ArrayLike, views: npt.ArrayLike | None = None) -> "Tensor":
        """uint8 tensor (B, 3, S, S) of the images in the given views (default: view 0, as they are)."""
        import torch

        index = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        view = (
            np.zeros_like(index)
            if views is None
            else np.broadcast_to(np.asarray(views, np.int64), index.shape)
        )
        self._check(index, view)
        array = self._seen(index, view)
        return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))

    def wide_pixels(self, indices: npt.ArrayLike) -> "Tensor":
        """uint8 tensor (B, 3, S + 32, S + 32) that the crops of `augment: flip_crop` are cut from."""
        import torch

        if self.augment != "flip_crop":
            raise ValueError("only augment = flip_crop has larger squares")
        index = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        array = self._pixels.get(self._rows[index], wide=True)
        return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))

    def crops(self, indices: npt.ArrayLike, view: npt.ArrayLike) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
        """(top, left, mirrored) of `flip_crop` views >= 1; offsets in pixels, multiples of 8."""
        index = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        return views.crop_of_view(self._keys[index], np.broadcast_to(np.asarray(view, np.int64), index.shape))

    def view_of_epoch(self, indices: npt.ArrayLike, epoch: int) -> Ints:
        """The view (B,) that each image shows in an epoch, a function of (seed, path, epoch) alone."""
        index = np.asarray(indices, dtype=np.int64)
        return views.view_of_epoch(self._keys[index], epoch, self.n_views)

    def subset(self, indices: npt.ArrayLike) -> "ImageSet":
        """The set of the chosen images (indices or a boolean mask), sharing the pixels in memory."""
        chosen = np.asarray(indices)
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        part = ImageSet(
            self.frame.iloc[index].reset_index(drop=True),
            self.unreadable,
            self._rows[index],
            self._pixels,
            self.augment,
            self._seed,
            self._thumbnails,
            self.transform,
        )
        part._groups = None if self._groups is None else self._groups[index]
        return part

    def _check(self, index: Ints, view: Ints) -> None:
        if len(index) and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"image index outside 0..{len(self) - 1}")
        if len(view) and (view.min() < 0 or view.max() >= self.n_views):
            raise IndexError(f"view outside 0..{self.n_views - 1} (augment = {self.augment})")

    def _seen(self, index: Ints, view: Ints) -> Pixels:
        rows = self._rows[index]
        if self.augment == "flip":
            out = self._pixels.get(rows)
            turned = np.flatnonzero(view)
            out[turned] = out[turned, :, ::-1]
            return out
        if self.augment == "none" or not view.any():
            return self._pixels.get(rows)
        out = np.empty((len(rows), self.image_size, self.image_size, 3), np.uint8)
        plain = view == 0
        if plain.any():
            out[plain] = self._pixels.get(rows[plain])
        changed = np.flatnonzero(~plain)
        wide = self._pixels.get(rows[changed], wide=True)
        for place, square, top, left, mirrored in zip(
            changed, wide, *self.crops(index[changed], view[changed]), strict=True
        ):
            cut = square[top : top + self.image_size, left : left + self.image_size]
            out[place] = cut[:, ::-1] if mirrored else cut
        return out


def open_split(
    settings: Settings,
    split: str,
    run: RunFolder | None = None,
    *,
    resize: str | None = None,
    image_size: int | None = None,
    reencode: "views.Reencode | views.PixelChange | tuple[object, ...] | None" = None,
    table: ImageTable | None = None,
) -> ImageSet:
    """The images of a split ("train", "val" or "test").

    Parameters
    ----------
    run : its cache folder remembers which files can be read (without a run: `runtime.cache_dir`, if set).
    resize, image_size : instead of those of the settings.
    reencode : changes decoded pixels before they are fitted, e.g. ``("JPEG", 75, 2)`` (see `Reencode`).
    table : the dataset's table when it has been read already.

    Raises
    ------
    UserError : see `read_table`; or no image of a class of the split can be read.
    """
    data = settings.dataset
    rows = (read_table(settings) if table is None else table).split(split)
    mode, size = resize or data.resize, image_size or data.image_size
    augment = data.augment if split == "train" else "none"
    wide = size + views.CROP_MARGIN if augment == "flip_crop" else 0
    change = views.reencoder(reencode)
    workers = worker_count(settings)
    labels = rows["label"].to_numpy(dtype=np.int64)
    pixels = _Pixels(rows["file"].tolist(), labels, mode, size, wide, change, workers)
    known = Readability(settings.runtime.cache_dir or (run.default_cache if run is not None else None))
    known.check(rows, keep=pixels.put, workers=workers)
    reasons = known.reasons(rows)
    readable = np.flatnonzero(reasons == "")
    _require_both_classes(split, labels, reasons)
    unreadable = pd.DataFrame({"path": rows["path"], "reason": reasons})[reasons != ""].reset_index(drop=True)
    transform = {
        "resize": mode,
        "image_size": size,
        "augment": augment,
        "seed": settings.training.seed,
        "reencode": "" if change is None else repr(reencode),
        "max_pixels": MAX_PIXELS,
    }
    return ImageSet(
        rows.iloc[readable].reset_index(drop=True),
        unreadable,
        readable,
        pixels,
        augment,
        settings.training.seed,
        lambda chosen: known.thumbnails(rows.iloc[chosen]),
        transform,
    )


def _require_both_classes(split: str, labels: Ints, reasons: npt.NDArray[Any]) -> None:
    for label, name in enumerate(("real", "fake")):
        of_class = labels == label
        if of_class.any() and not (reasons[of_class] == "").any():
            common = pd.Series(reasons[of_class]).mode()[0]
            raise UserError(
                f"split {split!r}: none of its {int(of_class.sum())} {name} images can be read ({common}); "
                "restore the files"
            )


def worker_count(settings: Settings) -> int:
    """Decoding threads: `runtime.workers`, or one a core up to 8."""
    wanted = settings.runtime.workers
    return max(1, wanted) if isinstance(wanted, int) else min(8, os.cpu_count() or 1)


def parallel(work: Callable[[Any], Result], items: Iterable[Any], workers: int) -> list[Result]:
    """`[work(item) for item in items]` by threads (decoders release the interpreter lock)."""
    chosen = list(items)
    if workers <= 1 or len(chosen) <= 1:
        return [work(item) for item in chosen]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, chosen))


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int) -> list[Ints]:
    """Shuffled index batches of an epoch, a function of (seed, epoch) alone; the last one may be smaller.

    A single image that would be left over joins the batch before it: alone it has no batch statistics.
    """
    order = np.random.default_rng([seed, 0xE70C, epoch]).permutation(n)
    starts = range(0, n, batch_size)[: steps_of_epoch(n, batch_size)]
    return [order[start:end] for start, end in zip(starts, [*starts[1:], n], strict=True)]


def steps_of_epoch(n: int, batch_size: int) -> int:
    """How many batches `epoch_batches` makes of n images."""
    whole, left = divmod(n, batch_size)
    return whole + (left > 1 or (left == 1 and not whole))


def to_input(pixels: "Tensor", mean: Sequence[float], std: Sequence[float]) -> "Tensor":
    """Normalised float32 (B, 3, H, W) = (pixels / 255 - mean) / std of uint8 pixels, on their device."""
    import torch

    shift = torch.tensor(mean, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
    return pixels.to(torch.float32).div_(255.0).sub_(shift).div_(scale)
