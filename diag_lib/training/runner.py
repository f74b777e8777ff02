"""Train the arms that a step needs, once for the whole run."""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from diag_lib import tensorboard_events
from diag_lib.devices import choose, thread_count
from diag_lib.evidence import RunFolder
from diag_lib.files import disk_errors
from diag_lib.images import open_split
from diag_lib.map_store import locked
from diag_lib.models import build_student
from diag_lib.progress import Bar
from diag_lib.settings import Settings
from diag_lib.statistics import auc
from diag_lib.teacher_cache import teacher_maps
from diag_lib.training.arms import EXPLORATORY, Overrides, Plan, effective, plan
from diag_lib.training.curves import write_curves
from diag_lib.training.data import Data
from diag_lib.training.distributed import World, world
from diag_lib.training.final import Final, final_pass
from diag_lib.training.folder import (
    CHECKPOINT,
    ArmResult,
    describe_arm,
    is_current,
    load_arm,
    load_checkpoint,
    save_checkpoint,
    write_scores,
    write_student,
)
from diag_lib.training.jobs import Job, Splits, make_job
from diag_lib.training.launch import launch
from diag_lib.training.loop import Student, train
from diag_lib.workers import deaths_told


class ArmResults(dict[str, ArmResult]):
    """Results by arm id; `plan` says on which schedule they were trained and what the budget left out."""

    def __init__(self, results: Mapping[str, ArmResult], made: Plan) -> None:
        super().__init__(results)
        self.plan = made

    @property
    def not_run(self) -> dict[str, str]:
        """Requested arms that were not trained, and why."""
        return self.plan.not_run


def train_arms(
    settings: Settings,
    run: RunFolder,
    ids: Sequence[str],
    *,
    extra: Mapping[str, Overrides] | None = None,
    progress: bool = True,
) -> ArmResults:
    """Train those arms that the run folder does not hold yet, and return all that the budget allows.

    Parameters
    ----------
    ids : arm ids of `ARMS`, of `extra`, or `<id>@seed<k>`.
    extra : further arms, id to dotted overrides; also what `recommended` is.
    progress : show a bar with an estimate on stderr.

    Arms that are the same training as another are linked to it. A killed training goes on at its last epoch.

    Raises
    ------
    UserError : unknown arm, unreadable dataset, missing weights.
    """
    if settings.runtime.tensorboard:
        tensorboard_events.require()  # before hours of training, not after
    splits = Splits(settings, run)
    made = plan(settings, len(splits.of(settings, "train").frame), ids, extra)
    wanted = [arm for arm in dict.fromkeys(ids) if arm in made.admitted]
    needed = list(dict.fromkeys(made.links.get(arm, arm) for arm in wanted))
    jobs = {arm: make_job(settings, splits, made, arm, extra) for arm in {*wanted, *needed}}
    processes = _launched(settings)
    if processes > 1 and not all(is_current(run, arm, jobs[arm].key) for arm in needed):
        launch(settings, run.create(), ids, extra, processes, progress)
    _train_pending(splits, [jobs[arm] for arm in needed], made.schedule_fraction, progress)
    for arm in wanted:
        if arm in made.links and world().first:
            job = jobs[arm]
            describe_arm(run, arm, job.key, job.overrides, effective(job.settings), made.links[arm])
    world().barrier()
    results = {arm: loaded for arm in wanted if (loaded := load_arm(run, arm)) is not None}
    if world().first:
        write_curves(settings, run, results.values())
    return ArmResults(results, made)


def _train_pending(splits: Splits, jobs: Sequence[Job], fraction: float, progress: bool) -> None:
    """Train the jobs that the run folder does not hold yet; two runs of one folder take turns."""
    run = splits.run
    if all(is_current(run, job.id, job.key) for job in jobs):
        return
    run.create()
    with locked(run.arm_dir(".lock")) if world().first else contextlib.nullcontext():
        world().barrier()
        pending = [job for job in jobs if not is_current(run, job.id, job.key)]
        world().barrier()
        for group in _groups(pending):
            _train_group(splits, group, fraction, progress and world().first)
            world().barrier()


def _launched(settings: Settings) -> int:
    """Processes to start by torchrun: one a GPU, up to `runtime.processes`. CPU arms are spread otherwise."""
    device = choose(settings).device
    if world().size > 1 or device.type != "cuda" or ":" in settings.runtime.device:
        return 1
    return min(settings.runtime.processes, torch.cuda.device_count())


def planned(
    settings: Settings, run: RunFolder, ids: Sequence[str], extra: Mapping[str, Overrides] | None = None
) -> Plan:
    """The plan that `train_arms` would follow."""
    return plan(settings, len(open_split(settings, "train", run).frame), ids, extra)


def _groups(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs that can share their batches: same images, batch size, seed, schedule and teacher."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        key = job.settings.digest("dataset", "teacher", "training.batch_size", "training.seed")
        groups.setdefault(key, []).append(job)
    yield from groups.values()


def _train_group(splits: Splits, group: Sequence[Job], fraction: float, progress: bool) -> None:
    """Train jobs in lockstep, over several processes where the settings ask for them.

    Under torchrun several arms are split over the processes, a single one is trained data-parallel.
    """
    data = _data(splits, group, progress)
    if world().size > 1 and len(group) > 1:
        mine = group[world().rank :: world().size]
        _train_here(splits, replace(data, world=World()), mine, fraction, progress)
        return
    shares = [share for k in range(_processes(data, group)) if (share := group[k :: _processes(data, group)])]
    if len(shares) > 1:
        _in_processes(splits, shares, fraction, progress)
    else:
        _train_here(splits, data, group, fraction, progress)


def _data(splits: Splits, group: Sequence[Job], progress: bool) -> Data:
    """Images, halves and (if any arm distils) the teacher's maps of a group, computed as far as needed."""
    settings = group[0].settings
    hardware = choose(settings)
    images = splits.of(settings, "train")
    half_a = splits.halves(settings) == "A"
    distilling = [job for job in group if job.settings.training.distillation.alpha_distill > 0]
    if not distilling:
        return Data(settings, images, splits.of(settings, "val"), half_a, None, hardware, world())
    maps = teacher_maps(settings, images, splits.run, progress=progress)
    data = Data(settings, images, splits.of(settings, "val"), half_a, maps, hardware, world())
    epochs = max(job.settings.training.epochs_s1 + job.settings.training.epochs_s2 for job in distilling)
    indices, views = data.pairs_needed(epochs)
    maps.ensure(indices[world().rank :: world().size], views[world().rank :: world().size])
    world().barrier()
    maps.ensure(indices, views)
    return data


def _student(job: Job, data: Data) -> Student:
    model, _ = build_student(job.settings, job.settings.training.seed)
    distills = job.settings.training.distillation.alpha_distill > 0
    scale = data.maps.scale if distills and data.maps is not None else None
    return Student(job.settings, model, data, scale, exploratory=job.id.split("@")[0] in EXPLORATORY)


def _train_here(splits: Splits, data: Data, group: Sequence[Job], fraction: float, progress: bool) -> None:
    run = splits.run
    students = [_student(job, data) for job in group]
    jobs = dict(zip(map(id, students), group, strict=True))
    for student, job in zip(students, group, strict=True):
        state = load_checkpoint(run.arm_dir(job.id), job.key)
        if state is not None:
            student.restore(state)
    done = sum(student.epoch for student in students)
    with _bar(group, done, progress) as bar, thread_count(data.hardware.threads):

        def after_epoch(student: Student) -> None:
            job = jobs[id(student)]
            if data.world.first:
                with disk_errors(run.root):
                    save_checkpoint(run.arm_dir(job.id), job.key, student.state())
            bar.update(1)

        train(students, data, after_epoch)
        finals = final_pass(students)
    for student, job, final in zip(students, group, finals, strict=True):
        if not data.world.first:
            continue
        with disk_errors(run.root):
            _write(splits, job, student, final, fraction)


def _write(splits: Splits, job: Job, student: Student, final: Final, fraction: float) -> None:
    """Fill the arm's folder; result.json comes last and makes it valid."""
    run, folder = splits.run, splits.run.arm_dir(job.id)
    name = f"artifacts/arms/{job.id}"
    (folder / "result.json").unlink(missing_ok=True)
    halves = splits.halves(job.settings)
    write_scores(folder / "val_scores.parquet", student.data.val, final.val, halves)
    write_scores(folder / "train_scores.parquet", student.data.train, final.train, None)
    write_student(student.model, folder)
    run.write_json(f"{name}/history.json", student.history)
    describe_arm(run, job.id, job.key, job.overrides, effective(job.settings), None)
    measured = auc(student.data.val.labels, final.val, nan="undefined")
    result = {
        "id": job.id,
        "auc": measured.value,
        "ci": measured.ci,
        "defined": measured.defined,
        "seed": job.settings.training.seed,
        "image_steps": student.image_steps,
        "seconds": student.seconds,
        "schedule_fraction": fraction,
        "stopped": student.stopped,
        "hardware": student.data.hardware.describe() | {"images_at_once": student.data.portion.most},
        "evidence": {
            "epochs": student.epoch,
            "nonfinite_steps": student.nonfinite_steps,
            "unreached_steps": student.unreached_steps,
            "gradients": student.signals,
            "parameters": student.deltas(),
            **final.numbers,
        },
    }
    run.write_json(f"{name}/result.json", result)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _bar(group: Sequence[Job], done: int, progress: bool) -> Bar:
    epochs = sum(job.settings.training.epochs_s1 + job.settings.training.epochs_s2 for job in group)
    names = ", ".join(job.id for job in group) if len(group) <= 3 else f"{len(group)} arms"
    return Bar(total=epochs, initial=done, desc=f"training {names}", unit="epoch", disable=not progress)


def _processes(data: Data, group: Sequence[Job]) -> int:
    """Worker processes for a group: on the CPU, if they can share the teacher's maps through files."""
    if (
        world().size > 1
        or data.hardware.device.type != "cpu"
        or (data.maps is not None and not data.maps.on_disk)
    ):
        return 1
    return min(group[0].settings.runtime.processes, len(group))


def _in_processes(splits: Splits, shares: Sequence[Sequence[Job]], fraction: float, progress: bool) -> None:
    """Each share of the arms in lockstep in a process of its own; the bar follows their checkpoints."""
    from joblib import Parallel, delayed

    everything = [job for share in shares for job in share]
    finished = threading.Event()

    def follow() -> None:
        with _bar(everything, 0, progress) as bar:
            while not finished.wait(1.0):
                bar.update(sum(_epochs_done(splits.run, job) for job in everything) - bar.n)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    told = (
        "a training process died (killed, out of memory, or crashed in native code): finished epochs are kept, "
        "the next run goes on from there; set runtime.processes lower if it dies again"
    )
    try:
        calls = (delayed(_worker)(splits.settings, splits.run.root, share, fraction) for share in shares)
        with deaths_told(told):
            Parallel(n_jobs=len(shares), backend="loky")(calls)
    finally:
        finished.set()
        follower.join()


def _worker(settings: Settings, root: Path, share: Sequence[Job], fraction: float) -> None:
    splits = Splits(settings, RunFolder(root))
    _train_here(splits, _data(splits, share, False), share, fraction, False)


def _epochs_done(run: RunFolder, job: Job) -> int:
    if is_current(run, job.id, job.key):
        return job.settings.training.epochs_s1 + job.settings.training.epochs_s2
    state = load_checkpoint(run.arm_dir(job.id), job.key)
    return 0 if state is None else int(state["epoch"])
