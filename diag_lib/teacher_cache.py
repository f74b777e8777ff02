"""What does the teacher say about every image and view, asked once and then remembered?

One teacher pass costs about fifty student steps, so its patch-logit maps are kept in memory-mapped files
beside the run folders, keyed by the teacher (tensors, architecture, preprocessing), the input transform, the
view and the identity of the image file. Only what is missing is computed; all arms, steps and runs share it.
"""

import hashlib
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from diag_lib import models
from diag_lib.devices import choose
from diag_lib.evidence import RunFolder
from diag_lib.images import ImageSet, to_input
from diag_lib.losses import LogitScale
from diag_lib.map_store import MISSING, MapStore
from diag_lib.models import PatchModel, build_teacher, pool, state_sha
from diag_lib.settings import PoolingSettings, Settings

BATCH_IMAGES = {"cpu": 8, "cuda": 128, "mps": 32}  # of 256 pixels; up to four times as many smaller ones
FLUSH_ROWS = 256  # maps computed between two writes: what a kill loses at most
SCALE_IMAGES = 20_000  # enough for the dataset's scale; larger sets are sampled evenly

Indices = Sequence[int] | npt.NDArray[np.int64]


class TeacherMaps:
    """The teacher's patch logits over one image set; made by `teacher_maps`.

    `key` names the teacher and the transform; `shape` is (h, w); `geometry` says where the cells look.
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
        description = _description(settings, images, model, self.shape)
        self.key = hashlib.sha256(repr(sorted(description.items())).encode()).hexdigest()
        self.computed = 0
        self._store = MapStore(cache / "teacher" / self.key[:32], description)
        self._kinds = np.zeros((len(images.frame), images.n_views), np.uint8)
        self._rows = np.zeros((len(images.frame), images.n_views), np.int64)
        self._identity = [file_identity(file) for file in images.frame["file"]]
        self._scale: LogitScale | None = None

    def get(self, indices: Indices, views: Indices | None = None) -> Tensor:
        """Patch logits (B, 1, h, w), float32 on the CPU, computed if missing; `views` default to view 0."""
        index = np.asarray(indices, np.int64)
        view = np.zeros_like(index) if views is None else np.asarray(views, np.int64)
        if (self._kinds[index, view] == MISSING).any():
            self.ensure(index, view)
        return torch.from_numpy(self._store.read(self._kinds[index, view], self._rows[index, view]))[:, None]

    def ensure(self, indices: Indices, views: Indices) -> None:
        """Compute and keep the maps of those (image, view) pairs that are not there yet."""
        pairs = np.unique(np.stack([np.asarray(views, np.int64), np.asarray(indices, np.int64)], 1), axis=0)
        views, indices = pairs[:, 0], pairs[:, 1]
        self._look_up(indices, views)
        missing = self._kinds[indices, views] == MISSING
        if missing.any():
            self._compute(indices[missing], views[missing])

    def image_logits(self, pooling: PoolingSettings | None = None) -> npt.NDArray[np.float64]:
        """Raw image logits (n,) of view 0, pooled in float64; `pooling` defaults to the settings'."""
        everything = np.arange(len(self.images.frame))
        self.ensure(everything, np.zeros_like(everything))
        chosen = pooling or self.settings.pooling
        blocks = [pool(self.get(block).double(), chosen).numpy() for block in _blocks(everything)]
        return np.concatenate(blocks) if blocks else np.zeros(0)

    @property
    def scale(self) -> LogitScale:
        """Location and spread of all patch logits of view 0 (of at most 20,000 images, evenly taken)."""
        if self._scale is None:
            n = len(self.images.frame)
            chosen = np.unique(np.linspace(0, n - 1, min(n, SCALE_IMAGES)).astype(np.int64))
            self.ensure(chosen, np.zeros_like(chosen))
            self._scale = LogitScale.of(self.get(chosen))
        return self._scale

    @property
    def on_disk(self) -> bool:
        """Whether another process finds these maps in the cache."""
        return self._store.writable

    def _look_up(self, indices: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> None:
        unknown = self._kinds[indices, views] == MISSING
        indices, views = indices[unknown], views[unknown]
        keys = [self._row_key(i, v) for i, v in zip(indices.tolist(), views.tolist(), strict=True)]
        self._store.refresh()
        self._kinds[indices, views], self._rows[indices, views] = self._store.lookup(keys)

    def _row_key(self, index: int, view: int) -> bytes:
        augment = self.settings.dataset.augment if view else "none"
        seed = self.settings.training.seed if view and augment == "flip_crop" else 0
        parts = (*self._identity[index], view, augment, seed)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()

    def _compute(self, indices: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> None:
        images = BATCH_IMAGES[self.device.type]
        batch = max(1, min(4 * images, images * 256**2 // self.images.image_size**2))
        flush = max(1, FLUSH_ROWS // batch) * batch
        network = self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        with tqdm(total=len(indices), desc="teacher pass", unit="image", disable=not self.progress) as bar:
            for start in range(0, len(indices), flush):
                part = slice(start, start + flush)
                index, view = indices[part], views[part]
                maps = []
                for at in range(0, len(index), batch):
                    maps.append(self._forward(network, index[at : at + batch], view[at : at + batch], batch))
                    bar.update(len(maps[-1]))
                keys = [self._row_key(i, v) for i, v in zip(index.tolist(), view.tolist(), strict=True)]
                self._kinds[index, view], self._rows[index, view] = self._store.append(
                    keys, np.concatenate(maps)
                )
        self.computed += len(indices)

    @torch.inference_mode()
    def _forward(
        self, network: PatchModel, index: npt.NDArray[np.int64], view: npt.NDArray[np.int64], batch: int
    ) -> npt.NDArray[np.float32]:
        """Maps (n, h, w). The batch is filled up to one size: a map must not depend on which others were
        missing."""
        filled = np.resize(np.arange(len(index)), batch)
        data = self.settings.dataset
        pixels = self.images.pixels(index[filled], view[filled]).to(self.device)
        x = to_input(pixels, data.normalize_mean, data.normalize_std).contiguous(
            memory_format=torch.channels_last
        )
        maps: npt.NDArray[np.float32] = network(x)[: len(index), 0].float().cpu().numpy()
        return maps


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
    into
        eval mode. Its tensors, architecture and preprocessing are part of the cache's key.
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
    """Hash of the source that defines the network: ours, or the user's own module (which is not imported)."""
    if ":" not in arch:
        return _hash(sorted(Path(models.__file__).parent.glob("*.py")))
    relative = Path(*arch.split(":")[0].split("."))
    for place in (*map(Path, sys.path), Path.cwd()):
        if (place / relative.with_suffix(".py")).is_file():
            return _hash([place / relative.with_suffix(".py")])
        if (place / relative / "__init__.py").is_file():
            return _hash(sorted((place / relative).glob("*.py")))
    return ""


def _hash(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def file_identity(file: str) -> tuple[str, int, int]:
    """(path, bytes, mtime in ns) of an image file; what a changed file does not keep."""
    try:
        status = Path(file).stat()
    except OSError:
        return file, -1, -1
    return file, status.st_size, status.st_mtime_ns


def _blocks(indices: npt.NDArray[np.int64], size: int = 1024) -> list[npt.NDArray[np.int64]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
