"""What does the teacher say about every image and view, asked once and then remembered?

One teacher pass costs about fifty student steps, so its patch-logit maps are kept in memory-mapped files
beside the run folders, keyed by the teacher (tensors, architecture, preprocessing), the input transform, the
view and the bytes of the image file. Only what is missing is computed; all arms, steps and runs share it.
"""

import hashlib
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from diag_lib import models
from diag_lib.device_memory import Portion, forward_in_parts
from diag_lib.devices import choose
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.images import ImageSet, to_input
from diag_lib.images.contents import content_hashes
from diag_lib.images.store import worker_count
from diag_lib.images.views import CROP_MARGIN, CROP_STEP
from diag_lib.losses import LogitScale
from diag_lib.map_store import MISSING, MapStore
from diag_lib.models import PatchModel, build_teacher, pool, state_sha
from diag_lib.models.folding import folded
from diag_lib.progress import Bar
from diag_lib.settings import PoolingSettings, Settings
from diag_lib.user_code import module_files

# Images of 256 pixels in one forward pass, up to `MOST_IMAGES` smaller ones. On a CPU the activations of more
# no longer fit into its caches (LaDeDa9: 547 ms an image alone, 580 by fours, 595 by eights).
BATCH_IMAGES = {"cpu": 2, "cuda": 128, "mps": 32}
MOST_IMAGES = {"cpu": 32, "cuda": 512, "mps": 128}
FLUSH_ROWS = 256  # maps computed between two writes: what a kill loses at most
BLOCK_IMAGES = 128  # whose maps are in memory at once when they are pooled: 32 MB at 256 pixels
# Enough for the dataset's scale, from which larger sets are sampled evenly: 20,000 images, but no more patch logits
# than fit into half a gigabyte as doubles and their copies (1,240 images of 256 pixels by Tiny-LaDeDa).
SCALE_IMAGES, SCALE_PATCHES = 20_000, 20_000_000
CHECK_PIXELS = 64  # side of the noise on which it is found out whether crops are slices

Indices = Sequence[int] | npt.NDArray[np.int64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Slices:
    """Maps of crops as windows of the map of the larger square: `step` pixels are one cell."""

    step: int
    shape: tuple[int, int]

    @property
    def margin(self) -> int:
        """Cells by which the larger map exceeds that of a crop."""
        return CROP_MARGIN // self.step


class TeacherMaps:
    """The teacher's patch logits over one image set; made by `teacher_maps`.

    `key` names the teacher and the transform; `shape` is (h, w); `geometry` says where the cells look.

    What the teacher is asked about are squares: the image as it is (0), for `augment: flip` mirrored (1), for
    `flip_crop` each crop (1..7) or, where the maps of crops are slices (see `slices_of`), the larger square
    (1) and its mirror image (2), which then answer for every crop of every seed.
    """

    def __init__(
        self,
        settings: Settings,
        images: ImageSet,
        model: PatchModel,
        device: torch.device,
        cache: Path,
        progress: bool,
    ) -> None:
        size = images.image_size
        self.settings, self.images, self.model = settings, images, model
        self.device, self.progress = device, progress
        self.geometry = model.geometry(size)
        self.shape = model.map_size(size)
        self.slices = slices_of(model, size, self.shape) if images.augment == "flip_crop" else None
        description = _description(settings, images, model, self.shape)
        self.key = hashlib.sha256(repr(sorted(description.items())).encode()).hexdigest()
        self.computed = 0
        stores = [MapStore(cache / "teacher" / self.key[:32], description)]
        squares = images.n_views
        if self.slices is not None:
            stores.append(_wide_store(cache, description, self.slices))
            squares = 3
        self._stores = stores
        self._kinds = np.zeros((len(images.frame), squares), np.uint8)
        self._rows = np.zeros((len(images.frame), squares), np.int64)
        self._contents = content_hashes(images.frame["file"].tolist(), cache, worker_count(settings))
        self._scale: LogitScale | None = None
        self._portion = Portion("teacher pass")

    def get(self, indices: Indices, views: Indices | None = None) -> Tensor:
        """Patch logits (B, 1, h, w), float32 on the CPU, computed if missing; `views` default to view 0."""
        index = np.asarray(indices, np.int64)
        view = np.zeros_like(index) if views is None else np.asarray(views, np.int64)
        square, top, left = self._places(index, view)
        if (self._kinds[index, square] == MISSING).any():
            self.ensure(index, view)
        kinds, rows = self._kinds[index, square], self._rows[index, square]
        if self.slices is None or not square.any():
            return torch.from_numpy(self._stores[0].read(kinds, rows))[:, None]
        out = np.empty((len(index), *self.shape), np.float32)
        plain, wide = np.flatnonzero(square == 0), np.flatnonzero(square)
        out[plain] = self._stores[0].read(kinds[plain], rows[plain])
        for at, whole in zip(wide, self._stores[1].read(kinds[wide], rows[wide]), strict=True):
            out[at] = whole[top[at] : top[at] + self.shape[0], left[at] : left[at] + self.shape[1]]
        return torch.from_numpy(out)[:, None]

    def ensure(self, indices: Indices, views: Indices) -> None:
        """Compute and keep the maps of those (image, view) pairs that are not there yet."""
        index, view = np.asarray(indices, np.int64), np.asarray(views, np.int64)
        square, _, _ = self._places(index, view)
        pairs = np.unique(np.stack([square, index, view]), axis=1)
        first = np.ones(pairs.shape[1], bool)  # one view of each square stands for the others
        first[1:] = (pairs[:2, 1:] != pairs[:2, :-1]).any(axis=0)
        square, index, view = pairs[:, first]
        self._look_up(index, square, view)
        missing = self._kinds[index, square] == MISSING
        for number in np.unique(square[missing]):
            chosen = missing & (square == number)
            self._compute(index[chosen], int(number), view[chosen])

    def image_logits(self, pooling: PoolingSettings | None = None) -> npt.NDArray[np.float64]:
        """Raw image logits (n,) of view 0, pooled in float64; `pooling` defaults to the settings'."""
        everything = np.arange(len(self.images.frame))
        self.ensure(everything, np.zeros_like(everything))
        chosen = pooling or self.settings.pooling
        blocks = [pool(self.get(block).double(), chosen).numpy() for block in _blocks(everything)]
        return np.concatenate(blocks) if blocks else np.zeros(0)

    @property
    def scale(self) -> LogitScale:
        """Location and spread of all patch logits of view 0 (of larger sets of some images, evenly taken)."""
        if self._scale is None:
            n = len(self.images.frame)
            most = min(n, SCALE_IMAGES, max(1, SCALE_PATCHES // math.prod(self.shape)))
            chosen = np.unique(np.linspace(0, n - 1, most).astype(np.int64))
            self.ensure(chosen, np.zeros_like(chosen))
            self._scale = LogitScale.of(self.get(chosen))
        return self._scale

    @property
    def on_disk(self) -> bool:
        """Whether another process finds these maps in the cache."""
        return all(store.writable for store in self._stores)

    def _places(self, index: Ints, view: Ints) -> tuple[Ints, Ints, Ints]:
        """The square that answers for each view, and where its map begins there (rows, columns of cells)."""
        zero = np.zeros_like(view)
        if self.slices is None or not view.any():
            return view, zero, zero
        top, left, mirrored = self.images.crops(index, view)
        left = np.where(mirrored, CROP_MARGIN - left, left)
        wide = view > 0
        square = np.where(wide, 1 + mirrored.astype(np.int64), 0)
        return square, np.where(wide, top // self.slices.step, 0), np.where(wide, left // self.slices.step, 0)

    def _store(self, square: int) -> MapStore:
        return self._stores[1 if square and self.slices is not None else 0]

    def _look_up(self, index: Ints, square: Ints, view: Ints) -> None:
        unknown = self._kinds[index, square] == MISSING
        for store in self._stores if unknown.any() else ():
            store.refresh()
        for number in np.unique(square[unknown]):
            chosen = unknown & (square == number)
            keys = self._keys(index[chosen], int(number), view[chosen])
            places = self._store(int(number)).lookup(keys)
            self._kinds[index[chosen], number], self._rows[index[chosen], number] = places

    def _keys(self, index: Ints, square: int, view: Ints) -> list[bytes]:
        """Names of maps within a store: the file's bytes and what was cut out of the fitted image.

        A pixel change may depend on the label, which is then part of the name.
        """
        changed = bool(self.images.transform["reencode"])
        labels = self.images.labels[index].tolist() if changed else [None] * len(index)
        named = zip(index.tolist(), self._cuts(index, square, view), labels, strict=True)
        texts = (repr((self._contents[i], cut, label)) for i, cut, label in named)
        return [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]

    def _cuts(self, index: Ints, square: int, view: Ints) -> list[Any]:
        """What was cut out of each image: a word, or (top, left, mirrored)."""
        if square and self.images.augment == "flip_crop" and self.slices is None:
            return [tuple(map(int, crop)) for crop in zip(*self.images.crops(index, view), strict=True)]
        words = ("as it is", "mirrored") if self.slices is None else ("as it is", "wide", "wide mirrored")
        return [words[square]] * len(index)

    def _compute(self, index: Ints, square: int, view: Ints) -> None:
        """The maps of one square of some images, `view` being a view that shows (part of) it."""
        side = self.images.image_size + (CROP_MARGIN if square and self.slices is not None else 0)
        kind = self.device.type
        batch = max(1, min(MOST_IMAGES[kind], BATCH_IMAGES[kind] * 256**2 // side**2))
        flush = max(1, FLUSH_ROWS // batch) * batch
        with Bar(total=len(index), desc="teacher pass", unit="image", disable=not self.progress) as bar:
            for start in range(0, len(index), flush):
                part = slice(start, start + flush)
                some, seen = index[part], view[part]
                maps = []
                for at in range(0, len(some), batch):
                    maps.append(self._forward(some[at : at + batch], square, seen[at : at + batch], batch))
                    bar.update(len(maps[-1]))
                keys = self._keys(some, square, seen)
                places = self._store(square).append(keys, np.concatenate(maps))
                self._kinds[some, square], self._rows[some, square] = places
        self.computed += len(index)

    @cached_property
    def _network(self) -> nn.Module:
        return folded(self.model).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    @torch.inference_mode()
    def _forward(self, index: Ints, square: int, view: Ints, batch: int) -> npt.NDArray[np.float32]:
        """Maps (n, h, w). The batch is filled up to one size: a map must not depend on which others were
        missing."""
        filled = np.resize(np.arange(len(index)), batch)
        pixels = self._pixels(index[filled], square, view[filled])
        maps = self._portion.run(batch, partial(forward_in_parts, self._ask, pixels))
        found: npt.NDArray[np.float32] = maps[: len(index), 0].numpy()
        return found

    def _ask(self, pixels: Tensor) -> Tensor:
        data = self.settings.dataset
        x = to_input(pixels.to(self.device), data.normalize_mean, data.normalize_std)
        maps: Tensor = self._network(x.contiguous(memory_format=torch.channels_last))
        return maps

    def _pixels(self, index: Ints, square: int, view: Ints) -> Tensor:
        if self.slices is None or square == 0:
            return self.images.pixels(index, view)
        wide = self.images.wide_pixels(index)
        return wide.flip(-1) if square == 2 else wide


@torch.no_grad()
def slices_of(model: PatchModel, size: int, shape: tuple[int, int]) -> Slices | None:
    """Whether the maps of crops at multiples of 8 pixels are slices of the map of the larger square.

    Found out on noise: true for unpadded networks on raw pixels or NPR; a padded layer or a Sobel filter sees
    a crop's border that the larger square does not have. None where it is not so.
    """
    step = model.geometry(size).stride
    if not float(step).is_integer() or CROP_STEP % int(step):
        return None
    reference = next(model.parameters())
    side = min(size, max(model.min_size, CHECK_PIXELS - (CHECK_PIXELS - size) % CROP_STEP))
    noise = torch.randn(
        1, 3, side + CROP_MARGIN, side + CROP_MARGIN, generator=torch.Generator().manual_seed(0)
    )
    wide = noise.to(reference)
    cells = int(step)
    try:
        whole = model(wide)
        for top, left in ((0, 0), (8, 24), (32, 16), (24, 32)):
            crop = model(wide[..., top : top + side, left : left + side])
            at, to = top // cells, left // cells
            cut = whole[..., at : at + crop.shape[-2], to : to + crop.shape[-1]]
            if cut.shape != crop.shape or not torch.allclose(
                cut, crop, rtol=1e-3, atol=1e-3 * float(crop.std())
            ):
                return None
    except (RuntimeError, ValueError, UserError, AssertionError):  # a network for one size of images only
        return None
    return Slices(cells, (shape[0] + CROP_MARGIN // cells, shape[1] + CROP_MARGIN // cells))


def _wide_store(cache: Path, description: dict[str, Any], slices: Slices) -> MapStore:
    wide = {**description, "shape": list(slices.shape), "margin": CROP_MARGIN}
    name = hashlib.sha256(repr(sorted(wide.items())).encode()).hexdigest()[:32]
    return MapStore(cache / "teacher" / name, wide)


def teacher_maps(
    settings: Settings,
    images: ImageSet,
    run: RunFolder,
    *,
    model: PatchModel | None = None,
    progress: bool = True,
) -> TeacherMaps:
    """The teacher's maps over an image set; nothing is computed before it is asked for.

    Parameters
    ----------
    model : the teacher to ask, when it is already built (else `models.build_teacher(settings)`); it is put
        into eval mode. Its tensors, architecture and preprocessing are part of the cache's key.
        The pass is always in fp32 whatever `runtime.precision` says: it must not change what is diagnosed.

    Raises
    ------
    UserError : the teacher cannot be built, or the images are too small for it.
    """
    teacher = (build_teacher(settings)[0] if model is None else model).eval()
    cache = settings.runtime.cache_dir or run.default_cache
    return TeacherMaps(settings, images, teacher, choose(settings).device, cache, progress)


def _description(
    settings: Settings, images: ImageSet, model: PatchModel, shape: tuple[int, int]
) -> dict[str, Any]:
    """Everything that all maps of a store depend on."""
    return {
        "shape": list(shape),
        "weights": state_sha(model),
        "arch": model.arch,
        "code": code_hash(settings.teacher.arch),
        "preprocess": model.preprocess,
        "input_scale": model.input_scale,
        "mean": list(settings.dataset.normalize_mean),
        "std": list(settings.dataset.normalize_std),
        "transform": [str(images.transform[name]) for name in ("resize", "image_size", "max_pixels")],
        "reencode": _stable(str(images.transform["reencode"])),
    }


def _stable(text: str) -> str:
    """The description of a pixel change; one that holds in this process only (an address) is made unique."""
    return f"{text} {uuid.uuid4()}" if " at 0x" in text else text


def code_hash(arch: str) -> str:
    """Hash of the source that defines the network (or loss): ours, or the user's own module (which is not imported)."""
    if ":" not in arch:
        return _hash(sorted(Path(models.__file__).parent.glob("*.py")))
    files = module_files(arch.split(":")[0])
    return _hash(files) if files else ""


def _hash(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _blocks(indices: npt.NDArray[np.int64], size: int = BLOCK_IMAGES) -> list[npt.NDArray[np.int64]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
