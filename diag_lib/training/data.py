"""Which images, labels and teacher maps does every arm see, in which order?"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diag_lib.device_memory import Portion
from diag_lib.devices import Hardware
from diag_lib.images import ImageSet, epoch_batches, to_input
from diag_lib.settings import Settings
from diag_lib.teacher_cache import TeacherMaps
from diag_lib.training.distributed import World

EVALUATION_PIXELS = 64 * 128 * 128  # images of one evaluation batch: 64 of 128 px, 16 of 256 px
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Normalised images (B, 3, H, W), labels (B,) float, the teacher's maps (B, 1, h, w) or None.

    Where several processes share a batch, x is this one's part and `size` the images of the whole.
    """

    x: Tensor
    y: Tensor
    teacher: Tensor | None
    size: int

    def part(self, rows: slice) -> "Batch":
        """Those rows alone."""
        teacher = None if self.teacher is None else self.teacher[rows]
        return Batch(self.x[rows], self.y[rows], teacher, len(self.y[rows]))


@dataclass(frozen=True)
class Data:
    """What a group of arms shares. `half_a` marks the validation images that may choose something.

    `portion` is how many images of a training batch the device's memory holds, `asked` of an evaluation batch.
    """

    settings: Settings
    train: ImageSet
    val: ImageSet
    half_a: npt.NDArray[np.bool_]
    maps: TeacherMaps | None
    hardware: Hardware
    world: World = field(default_factory=World)
    portion: Portion = field(default_factory=lambda: Portion("training"))
    asked: Portion = field(default_factory=lambda: Portion("evaluation"))

    def training_batches(self, epoch: int) -> Iterator[Batch]:
        """The epoch's shuffled, augmented batches: a function of (seed, epoch) alone."""
        chosen = self.settings.training
        world = self.world
        whole = epoch_batches(len(self.train.frame), chosen.batch_size, chosen.seed, epoch)
        mine = [batch[world.rank :: world.size] for batch in whole]  # the last part may be empty
        jobs = ((self.train, index, self.train.view_of_epoch(index, epoch)) for index in mine)
        loaded = zip(prefetched(self._load, jobs), whole, strict=True)
        return (self._to_device(*batch, len(all_of_it)) for batch, all_of_it in loaded)

    def evaluation_batches(
        self, images: ImageSet, indices: Ints | None = None, with_teacher: bool = False
    ) -> Iterator[Batch]:
        """Those images (default: all) in order, as they are (view 0)."""
        size = max(1, EVALUATION_PIXELS // images.image_size**2)
        chosen = np.arange(len(images.frame)) if indices is None else indices
        jobs = ((images, chosen[at : at + size], None) for at in range(0, len(chosen), size))
        load = self._load if with_teacher else self._load_images
        return (self._to_device(*loaded) for loaded in prefetched(load, jobs))

    def pairs_needed(self, epochs: int) -> tuple[Ints, Ints]:
        """Every (image, view) of the training set that this many epochs and the final pass look at."""
        everything = np.arange(len(self.train.frame))
        views = [np.zeros_like(everything)] + [
            self.train.view_of_epoch(everything, epoch) for epoch in range(epochs)
        ]
        return np.tile(everything, len(views)), np.concatenate(views)

    def _load_images(self, job: tuple[ImageSet, Ints, Ints | None]) -> tuple[Tensor, Tensor, Tensor | None]:
        images, index, views = job
        return images.pixels(index, views), torch.from_numpy(images.labels[index]).float(), None

    def _load(self, job: tuple[ImageSet, Ints, Ints | None]) -> tuple[Tensor, Tensor, Tensor | None]:
        pixels, labels, _ = self._load_images(job)
        return pixels, labels, None if self.maps is None else self.maps.get(job[1], job[2])

    def _to_device(
        self, pixels: Tensor, labels: Tensor, teacher: Tensor | None, size: int | None = None
    ) -> Batch:
        device = self.hardware.device
        chosen = self.settings.dataset
        x = to_input(pixels.to(device, non_blocking=True), chosen.normalize_mean, chosen.normalize_std)
        x = x.contiguous(memory_format=self.hardware.memory_format)
        if teacher is not None:
            teacher = teacher.to(device, non_blocking=True)
        return Batch(x, labels.to(device), teacher, len(labels) if size is None else size)


Job = tuple[ImageSet, Ints, Ints | None]
Loaded = tuple[Tensor, Tensor, Tensor | None]


def prefetched(load: Callable[[Job], Loaded], jobs: Iterator[Job]) -> Iterator[Loaded]:
    """Load the next batch on another thread while the current one is being trained on."""
    with ThreadPoolExecutor(1) as pool:
        job = next(jobs, None)
        pending = None if job is None else pool.submit(load, job)
        while pending is not None:
            ready = pending.result()
            job = next(jobs, None)
            pending = None if job is None else pool.submit(load, job)
            yield ready
