"""What do lockstep and the teacher's cache save, and what do they cost?"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.figure import TARGETS, draw, met
from benchmarks.growth import growth
from benchmarks.memory import peak_memory
from benchmarks.peer import Peer
from benchmarks.pictures import write_dataset
from benchmarks.plain import train_plain, trainable
from benchmarks.timing import Report, Times, alternate, timed
from diag_lib.devices import choose, thread_count
from diag_lib.evidence import RunFolder
from diag_lib.images import open_split, to_input
from diag_lib.models import PatchModel, build_student, build_teacher, save_weights
from diag_lib.models.folding import folded
from diag_lib.settings import Settings, load
from diag_lib.teacher_cache import TeacherMaps, teacher_maps
from diag_lib.training import arm_settings, train_arms
from diag_lib.training.data import Data
from diag_lib.training.loop import Student, train_step

__all__ = ["MEANINGS", "SIZES", "draw", "further_lines", "run"]

ARMS = ("status_quo", "bce_only", "standardized", "centered", "alpha_0.01", "alpha_0.1")
"""Six trainings, five of which use the teacher."""

SAME_LOSS = ("status_quo", "bce_only", "alpha_0.01", "alpha_0.1")
"""Arms whose plain training is the same calculation (the others normalise by the batch there)."""


@dataclass(frozen=True)
class Size:
    """How much is measured: images a split, their side in pixels, images a batch, and repetitions."""

    images: int
    val: int
    pixels: int
    batch: int
    repetitions: int
    step_repetitions: int
    tried: int  # images on which the teacher's best forward is looked for
    epochs: int = 3
    arms: tuple[str, ...] = ARMS
    cold_every: int = 1  # a cold start of ours after every so many plain runs
    growth_images: tuple[int, ...] = (16, 64, 256)
    growth_arms: tuple[int, ...] = (1, 2, 4, 8)
    growth_pixels: int = 64
    peer: bool = True


SIZES: dict[str, Size] = {
    "small": Size(images=32, val=16, pixels=64, batch=16, repetitions=3, step_repetitions=15, tried=32),
    "full": Size(
        images=64, val=16, pixels=256, batch=32, repetitions=2, step_repetitions=5, tried=8, cold_every=3
    ),
}

MEANINGS: dict[str, str] = {
    "step_ratio": "one arm's training step in lockstep / bare forward + backward + Adam",
    "lone_step_ratio": "the same for arms that are trained one by one, with nothing to share",
    "examined_step_ratio": "the same for the one step an epoch in which gradients are examined too",
    "teacher_ratio": "teacher pass into an empty cache / bare forward at its best setting",
    "speedup_cold": "six plain runs / six arms of ours, nothing cached",
    "speedup_warm": "six plain runs / six arms of ours, teacher's maps cached",
    "speedup_flip_cold": "the same with augment: flip, nothing cached (five plain runs with a teacher from one)",
    "speedup_flip_warm": "with augment: flip, teacher's maps cached",
}


PEER_MEANINGS: dict[str, str] = {
    "torchdistill_over_ours_cold": "the six trainings through torchdistill / six arms of ours, nothing cached",
    "torchdistill_over_ours_warm": "the same with the teacher's maps cached",
}
"""Absent where torchdistill cannot be installed."""
MEANINGS |= PEER_MEANINGS


def further_lines(found: dict[str, Any]) -> list[str]:
    """Targets, memory, growth and the peer, for the table's foot."""
    lines = []
    for name, (target, side) in TARGETS.items():
        verdict = "met" if met(name, found[name]) else "MISSED"
        lines.append(f"  {name:24}{found[name]:8.2f}  target: {side} {target:g}: {verdict}")
    if found["memory"]:
        lines.append(
            "  peak memory, MiB: " + ", ".join(f"{k[:-4]} {v:.0f}" for k, v in found["memory"].items())
        )
    for name, curve in found["growth"].items():
        if isinstance(curve, dict):
            line = f"{curve['fixed']:.2f} s + {curve['per_unit']:.4f} s each (r2 {curve['r2']:.3f})"
            lines.append(f"  growth {name}: x {curve['x']}, seconds {curve['seconds']}; {line}")
    peer = found.get("torchdistill", {})
    lines.append(f"  torchdistill {peer.get('version', '')}{peer.get('skipped', '')}")
    return lines


def run(size: Size, threads: int, report: Report) -> None:
    """Measure everything; the numbers go into the report."""
    report.conditions |= asdict(size) | {"precision": "fp32", "device": "cpu"}
    with thread_count(threads), tempfile.TemporaryDirectory() as temporary:
        bench = _Bench(Path(temporary), size, threads, report)
        bench.teacher()
        bench.step()
        bench.speedup()
        bench.flip()
        report.further["growth"] = growth(bench.settings, Path(temporary), size)
        report.further["memory"] = peak_memory(bench.settings, Path(temporary), size.arms)
    report.conditions["kernels"] = choose(bench.settings).describe()["kernels"]


class _Bench:
    """A dataset, a teacher's weights and a cache in a temporary folder."""

    def __init__(self, root: Path, size: Size, threads: int, report: Report) -> None:
        self.root, self.size, self.report = root, size, report
        self.numbers = count()
        self.peer = Peer(root, report) if size.peer else None
        first = size.epochs // 3
        self.settings = load(
            "base",
            {
                "dataset.root": str(write_dataset(root / "data", size.images, size.val, size.pixels, "png")),
                "dataset.image_size": size.pixels,
                "dataset.augment": "none",
                "teacher.arch": "ladeda9",
                "teacher.weights": None,
                "training.batch_size": size.batch,
                "training.epochs_s1": first,
                "training.epochs_s2": size.epochs - first,
                "runtime.device": "cpu",
                "runtime.precision": "fp32",
                "runtime.threads": threads,
                "runtime.workers": threads,
                "runtime.processes": 1,
                "runtime.budget": "full",
            },
        )
        weights = root / "teacher.safetensors"
        save_weights(build_teacher(self.settings)[0], weights)
        self.settings = self.settings.with_overrides({"teacher.weights": str(weights)})
        self.model: PatchModel = build_teacher(self.settings)[0].eval()

    def fresh(self) -> tuple[Settings, RunFolder]:
        """Settings with an empty cache, and an empty run folder."""
        folder = self.root / f"fresh-{next(self.numbers)}"
        settings = self.settings.with_overrides({"runtime.cache_dir": str(folder / "cache")})
        return settings, RunFolder(folder / "run").create()

    def maps(self, settings: Settings, run: RunFolder) -> TeacherMaps:
        return teacher_maps(
            settings, open_split(settings, "train", run), run, model=self.model, progress=False
        )

    # ---- the teacher

    def teacher(self) -> None:
        """`teacher_ratio`: images are decoded before the clock starts, on both sides."""
        everything = np.arange(self.size.images)
        images = open_split(self.settings, "train")
        data = self.settings.dataset
        x = to_input(images.pixels(everything), data.normalize_mean, data.normalize_std)
        bare, self.report.conditions["best_forward"] = best_forward(self.model, x, self.size.tried)

        def ours() -> None:
            settings, run = self.fresh()
            maps = teacher_maps(settings, images, run, model=self.model, progress=False)
            maps.ensure(everything, np.zeros_like(everything))

        pairs = alternate(ours, bare, self.size.repetitions)
        self.report.add("teacher_ratio", pairs)
        self.report.seconds["teacher_image"] = _median([p[0] for p in pairs]) / self.size.images
        self.report.seconds["bare_teacher_image"] = _median([p[1] for p in pairs]) / self.size.images

    # ---- the step

    def step(self) -> None:
        """`step_ratio`: a whole epoch of six arms through our batches, and as many bare steps."""
        settings, run = self.fresh()
        maps = self.maps(settings, run)
        val = open_split(settings, "val", run)
        half_a = np.arange(len(val.frame)) % 2 == 0
        data = Data(settings, maps.images, val, half_a, maps, choose(settings))
        maps.ensure(*data.pairs_needed(1))
        students = [self._student(arm, data) for arm in self.size.arms]
        batches = list(data.training_batches(0))
        steps = len(batches) * len(self.size.arms)
        bare = [bare_step(arm_settings(self.settings, arm), batches[0].x, batches[0].y, batches[0].teacher)
                for arm in self.size.arms]  # fmt: skip

        for student in students:
            student.begin_epoch()

        def ours(examine: bool) -> None:
            for index, batch in enumerate(data.training_batches(0)):
                train_step(students, batch, index, [examine] * len(students))

        def plain() -> None:
            for _ in batches:
                for step in bare:
                    step()

        ours(False)  # allocations and algorithm choices of the first time
        plain()

        def alone() -> None:
            for student in students:
                for index, batch in enumerate(data.training_batches(0)):
                    train_step([student], batch, index, [False])

        pairs = alternate(lambda: ours(False), plain, self.size.step_repetitions)
        self.report.add("lone_step_ratio", alternate(alone, plain, self.size.step_repetitions))
        self.report.add("step_ratio", pairs)
        self.report.add("examined_step_ratio", alternate(lambda: ours(True), plain, self.size.repetitions))
        self.report.seconds["step"] = _median([p[0] for p in pairs]) / steps
        self.report.seconds["bare_step"] = _median([p[1] for p in pairs]) / steps

    def _student(self, arm: str, data: Data) -> Student:
        chosen = arm_settings(data.settings, arm).with_overrides({"training.epochs_s1": 0})
        assert data.maps is not None
        distills = chosen.training.distillation.alpha_distill > 0
        model = build_student(chosen, chosen.training.seed)[0]
        return Student(chosen, model, data, data.maps.scale if distills else None)

    # ---- the whole

    def speedup(self) -> None:
        """`speedup_*`: ours runs between the plain runs of the arms, so that load meets both."""
        warm_settings = self._warmed()
        pairs_cold, pairs_warm = [], []
        for _ in range(max(1, self.size.repetitions // 2)):
            plain, cold, warm = Times(0, 0), [], []
            for number, arm in enumerate(self.size.arms):
                losses: list[float] = []
                plain += timed(
                    lambda arm=arm, losses=losses: losses.extend(
                        train_plain(arm_settings(self.settings, arm))
                    )
                )
                if number % self.size.cold_every == 0:
                    settings, run = self.fresh()
                    cold.append(
                        timed(lambda s=settings, r=run: train_arms(s, r, self.size.arms, progress=False))
                    )
                    self._check_same(run, arm, losses)
                run = RunFolder(self.root / f"fresh-{next(self.numbers)}")
                warm.append(timed(lambda r=run: train_arms(warm_settings, r, self.size.arms, progress=False)))
                if self.peer is not None:
                    self.peer.measure(arm, arm_settings(self.settings, arm))
            pairs_cold += [(plain, times) for times in cold]
            pairs_warm += [(plain, times) for times in warm]
        self.report.add("speedup_cold", pairs_cold)
        self.report.add("speedup_warm", pairs_warm)
        if self.peer is not None:
            self.peer.compare(
                self.size.arms, [ours for _, ours in pairs_cold], [ours for _, ours in pairs_warm]
            )
        self.report.seconds["six_plain_runs"] = _median([p[0] for p in pairs_cold])
        self.report.seconds["six_arms_cold"] = _median([p[1] for p in pairs_cold])
        self.report.seconds["six_arms_warm"] = _median([p[1] for p in pairs_warm])

    def flip(self) -> None:
        """`speedup_flip_*`: a mirrored image is another view, which the teacher is asked about too.

        The plain runs with a teacher do the same work, so that one of them is timed and counted for all.
        """
        flipped = self.settings.with_overrides({"dataset.augment": "flip"})
        with_teacher = [arm for arm in self.size.arms if arm != "bce_only"]
        once = timed(lambda: train_plain(arm_settings(flipped, with_teacher[0])))
        plain = Times(once.wall * len(with_teacher), once.cpu * len(with_teacher))
        if "bce_only" in self.size.arms:
            plain += timed(lambda: train_plain(arm_settings(flipped, "bce_only")))
        settings, run = self.fresh()
        settings = settings.with_overrides({"dataset.augment": "flip"})
        runs = [run, *(RunFolder(self.root / f"fresh-{next(self.numbers)}") for _ in range(2))]
        times = [timed(lambda r=r: train_arms(settings, r, self.size.arms, progress=False)) for r in runs]
        self.report.add("speedup_flip_cold", [(plain, times[0])])
        self.report.add("speedup_flip_warm", [(plain, time) for time in times[1:]])

    def _warmed(self) -> Settings:
        """Both ways once, untimed (first-time costs); the cache that this fills is the warm one."""
        train_plain(arm_settings(self.settings, "bce_only"))
        settings, run = self.fresh()
        train_arms(settings, run, self.size.arms, progress=False)
        return settings

    def _check_same(self, run: RunFolder, arm: str, losses: Sequence[float]) -> None:
        """Both ways did the same calculation: equal training losses, epoch by epoch."""
        if arm not in SAME_LOSS:
            return
        history = run.read_json(f"artifacts/arms/{arm}/history.json") or {}
        if not np.allclose(history.get("train_loss", []), losses, rtol=0.02):
            raise AssertionError(f"{arm}: ours {history.get('train_loss')}, plain {list(losses)}")


def best_forward(model: PatchModel, x: Tensor, tried: int) -> tuple[Callable[[], object], str]:
    """The fastest bare forward over all of x (n, 3, H, W), already in memory, and its name.

    Found by trying on the first `tried` images: batch norms folded or not, both memory formats, then batches of
    1, 2, 4, 8 and 32 images.
    """
    networks: dict[str, nn.Module] = {"folded": folded(model), "as it is": model}
    forms = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    with torch.inference_mode():
        one, other = (network(x[:1]) for network in networks.values())
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)

    def forward(name: str, form: str, batch: int, images: Tensor = x[:tried]) -> Callable[[], object]:
        network = networks[name]
        parts = [part.contiguous(memory_format=forms[form]) for part in images.split(batch)]

        def work() -> None:
            network.to(memory_format=forms[form])  # type: ignore[call-overload]
            with torch.inference_mode():
                for part in parts:
                    network(part)

        return work

    name, form, _ = _fastest([(n, f, min(8, tried)) for n in networks for f in forms], forward)
    name, form, batch = _fastest([(name, form, b) for b in (1, 2, 4, 8, 32) if b <= tried], forward)
    return forward(name, form, batch, x), f"{name}, {form}, batches of {batch}"


def _fastest(
    choices: Sequence[tuple[str, str, int]], make: Callable[[str, str, int], Callable[[], object]]
) -> tuple[str, str, int]:
    """The choice that needs least processor time, the better of two tries each, taken in turns."""
    works = [make(*choice) for choice in choices]
    tries = np.array([[timed(work).cpu for work in works] for _ in range(2)])
    return choices[int(tries.min(axis=0).argmin())]


def bare_step(settings: Settings, x: Tensor, y: Tensor, maps: Tensor | None) -> Callable[[], None]:
    """One step of an arm with nothing around it, on one batch that stays in memory."""
    model = build_student(settings, settings.training.seed)[0].train().to(memory_format=torch.channels_last)
    trainable(model, settings.student.trainable_s2)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(
        parameters, lr=settings.training.lr_s2, weight_decay=settings.training.weight_decay
    )
    alpha = settings.training.distillation.alpha_distill

    def step() -> None:
        patches = model(x)
        loss = (1 - alpha) * F.binary_cross_entropy_with_logits(patches.mean((1, 2, 3)), y)
        if alpha > 0 and maps is not None:
            loss = loss + alpha * F.mse_loss(F.avg_pool2d(patches, 3, stride=4), maps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _median(times: Sequence[Times]) -> float:
    return float(np.median([t.wall for t in times]))
