"""How do the seven notebooks become one run? In order, resumed where it stopped, an honest page for each."""

import contextlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from diag_lib import resources
from diag_lib.errors import UserError
from diag_lib.evidence import SEVERITIES, STEP_TITLES, STEPS, RunFolder
from diag_lib.files import disk_errors
from diag_lib.images import beside_run
from diag_lib.progress import duration
from diag_lib.settings import Settings, load
from diag_lib.workbook import fingerprint
from diag_lib.workbook.execute import Kernel, execute, now
from diag_lib.workbook.preflight import refuse_mistakes
from diag_lib.workbook.start import SETTINGS_FILE, prepare_data
from diag_lib.workbook.state import RunState, StepState, gather_facts, only_one

DONE, FAIL_ON_REACHED, STEP_FAILED = 0, 1, 3
ROOM = 512 * 1024
"""Bytes that have to be free before a step begins."""

# Shares of a run's time on the demo (one core); they only feed the "about ... left" of the progress line.
SHARES = {
    "symptoms": 14,
    "audit": 8,
    "teacher": 8,
    "logits": 6,
    "baseline": 24,
    "distillation": 28,
    "verdict": 12,
}


# A running step says how far it is after this many seconds; in long runs, after this share of the time so far.
TELL_SECONDS, TELL_SHARE = 30.0, 0.05


def notebook_name(step: str) -> str:
    """`02_teacher` for "teacher"."""
    return f"{STEPS.index(step):02d}_{step}"


def run_workbook(
    config: Settings | str | Path,
    out: str | Path,
    *,
    steps: Sequence[str] | None = None,
    fresh: bool = False,
    overrides: Mapping[str, Any] | None = None,
    fail_on: Literal["warning", "error"] | None = None,
    cell_timeout: float | None = None,
    time_limit: float | None = None,
    notebooks: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> int:
    """Run the notebooks of `steps` (all by default) on `config` and write the report into the folder `out`.

    Parameters
    ----------
    fresh : run every step again, also those whose inputs have not changed.
    fail_on : return 1 when a step that is asked for has a finding of this severity or worse.
    cell_timeout, time_limit : seconds for one cell and for the whole run; a stopped run is marked incomplete.
    notebooks : folder of the `NN_step.ipynb` files (default: the package's).
    say : takes the progress lines (default: standard error).

    Returns
    -------
    0 done, 1 `fail_on` reached, 3 a step failed or was stopped; the report is written in every case.

    Raises
    ------
    UserError : settings, dataset or folder are unusable. KeyboardInterrupt : after leaving a consistent folder.
    """
    chosen = _chosen(steps)
    settings = config if isinstance(config, Settings) else load(config)
    settings = settings.with_overrides(overrides) if overrides else settings
    if not isinstance(config, Settings):
        prepare_data(settings, config)
    settings = beside_run(settings, Path(out), RunFolder(out).default_cache)
    inputs, facts = fingerprint.inputs(settings), gather_facts(settings)
    refuse_mistakes(settings, chosen, Path(out))
    folder = RunFolder(out).create()
    with disk_errors(folder.root), only_one(folder), _terminate_as_interrupt():
        run = _Run(
            settings,
            folder,
            chosen,
            fresh,
            notebooks or resources.notebooks_dir(),
            say or _to_stderr,
            inputs,
            facts,
        )
        run.cell_timeout = cell_timeout
        run.deadline = time.monotonic() + time_limit if time_limit else None
        run.all_steps()
    bad = any(run.state.steps[step].status in ("failed", "stopped", "not run") for step in chosen)
    if bad:
        return STEP_FAILED
    return FAIL_ON_REACHED if fail_on and _reached(folder, chosen, fail_on) else DONE


class _Run:
    cell_timeout: float | None = None
    deadline: float | None = None
    changed = False  # the dataset, since the run began

    def __init__(
        self,
        settings: Settings,
        folder: RunFolder,
        chosen: Sequence[str],
        fresh: bool,
        notebooks: Path,
        say: Callable[[str], None],
        inputs: dict[str, str],
        facts: dict[str, Any],
    ) -> None:
        self.settings, self.folder, self.chosen, self.notebooks, self.say = (
            settings,
            folder,
            chosen,
            notebooks,
            say,
        )
        missing = [step for step in chosen if not self.source(step).is_file()]
        if missing:
            raise UserError(f"{notebooks}: the notebook {notebook_name(missing[0])}.ipynb is missing")
        self._tell_of_other_dataset()
        folder.write_text(SETTINGS_FILE, settings.to_yaml())
        self.state = RunState.load(folder)
        self.before = {step: line.seconds for step, line in self.state.steps.items() if line.status == "done"}
        self.state.inputs, self.state.facts = inputs, facts
        self.state.started, self.state.finished = now(), None
        self.begun = time.monotonic()
        self.pending = self._to_run(fresh)
        self.next_kernel: Kernel | None = None

    def _tell_of_other_dataset(self) -> None:
        """A folder is named after the settings, so the next dataset's report comes to lie where the last one's is."""
        with contextlib.suppress(UserError):
            held = load(self.folder.root / SETTINGS_FILE).dataset.root
            if held != self.settings.dataset.root:
                self.say(
                    f"{self.folder.root} holds a run on {str(held)!r}, which is replaced; --out FOLDER keeps both"
                )

    def source(self, step: str) -> Path:
        return self.notebooks / f"{notebook_name(step)}.ipynb"

    def key(self, step: str) -> str:
        return fingerprint.step_key(step, self.source(step), self.state.inputs, self.folder)

    def _to_run(self, fresh: bool) -> list[str]:
        """The chosen steps whose result cannot be kept; every other step's line is brought up to date."""
        run: list[str] = []
        for step in STEPS:
            line = self.state.steps[step]
            kept = line.status in ("done", "out of date") and self._complete(step)
            current = kept and self.source(step).is_file() and line.key == self.key(step)
            if step in self.chosen:
                # The verdict reads what other steps write: it is judged again as soon as one of them runs.
                if fresh or not current or (step == "verdict" and run):
                    run.append(step)
                else:
                    line.status, line.reused = "done", True
            elif not kept and line.status in ("done", "running", "out of date"):
                self.state.steps[step] = StepState()
            elif kept:
                line.status, line.reused = ("done" if current else "out of date"), True
        return run

    def _complete(self, step: str) -> bool:
        pages = (self.folder.root / f"{notebook_name(step)}.html", self._target(step))
        told = self.folder.read_evidence(step) is not None
        if step == "verdict":
            told = told and isinstance(self.folder.read_json("verdict.json"), dict)
        return told and all(path.is_file() for path in pages)

    def _target(self, step: str) -> Path:
        return self.folder.root / "notebooks" / f"{notebook_name(step)}.ipynb"

    def all_steps(self) -> None:
        """Run what has to run; the folder is consistent at every moment, also when this is interrupted."""
        from diag_lib.workbook import index, render

        if self.pending:
            self._start_kernel()
        try:
            for number, step in enumerate(self.chosen, 1):
                where = f"[{number}/{len(self.chosen)}] {STEP_TITLES[step]}"
                if step not in self.pending:
                    self.say(f"{where}: kept, its inputs have not changed")
                    continue
                _refuse_full(self.folder)
                interrupted = self._one_step(step, where)
                render.write_page(self.folder, self.state, step, self.settings)
                self.state.save(self.folder)
                if interrupted:
                    raise KeyboardInterrupt
                index.write_index(self.folder, self.state, self.settings)
                if self.changed:
                    raise UserError(
                        f"the dataset changed during {STEP_TITLES[step]}: results of two datasets would be mixed; "
                        "let it rest, then run the same command again"
                    )
        finally:
            self._stop_kernel()
            self._outdated()
            self.state.finished = now()
            self.state.save(self.folder)
            index.write_index(self.folder, self.state, self.settings)
            render.refresh_navigation(self.folder, self.state)
            index.write_home(self.folder)

    def _one_step(self, step: str, where: str) -> bool:
        """Run one notebook and note how it went; True when the run was interrupted in it."""
        line = self.state.steps[step] = StepState("running", started=now(), key=self.key(step))
        self._forget(step)
        self.state.save(self.folder)
        self.say(f"{where}: running{self._left(step)}")
        self._target(step).parent.mkdir(exist_ok=True)
        if self.deadline is not None and time.monotonic() >= self.deadline:
            line.status, line.why, line.outcome = (
                "not run",
                "The time limit was reached before this step.",
                "time limit",
            )
            return False
        kernel, self.next_kernel = self.next_kernel or Kernel(self.settings, Path.cwd()), None
        self.pending.remove(step)
        if self.pending:
            self._start_kernel()
        parameters = {
            "config": str(self.folder.root / SETTINGS_FILE),
            "run_dir": str(self.folder.root),
            "overrides": {},
        }
        try:
            result = execute(
                self.source(step),
                self._target(step),
                parameters,
                kernel,
                cell_timeout=self.cell_timeout,
                deadline=self.deadline,
                meanwhile=self._teller(step, where, kernel),
            )
        except UserError as error:  # the notebook cannot be kept
            line.status, line.why, line.outcome = "failed", str(error), "error"
            raise
        finally:
            kernel.stop()
        line.record(result)
        if line.status == "done" and self.folder.read_evidence(step) is None:
            line.status, line.why = (
                "failed",
                f"The notebook ran to its end but wrote no evidence/{step}.json.",
            )
        if fingerprint.dataset_of(self.settings) != self.state.inputs["dataset"]:
            self.changed = True
            line.status, line.why = "failed", "The dataset changed while the run was reading it."
        tail = f": {line.why}" if line.why else ""
        self.say(f"{where}: {line.status} after {result.seconds:.0f} s{tail}")
        return result.outcome == "interrupted"

    def _forget(self, step: str) -> None:
        """What an earlier run of the step wrote must not be taken for this one's."""
        stale = [
            self.folder.evidence_path(step),
            self._target(step),
            self.folder.root / f"{notebook_name(step)}.html",
        ]
        if step == "verdict":
            stale += [self.folder.root / "verdict.json", self.folder.root / "recommended.yaml"]
        for path in stale:
            path.unlink(missing_ok=True)

    def _outdated(self) -> None:
        """After the last step: an interrupted step is stopped, a verdict older than its evidence is out of date."""
        for line in self.state.steps.values():
            if line.status == "running":
                line.status, line.why, line.outcome = "stopped", "The run was interrupted.", "interrupted"
        verdict = self.state.steps["verdict"]
        if verdict.status == "done" and verdict.key != self.key("verdict"):
            verdict.status = "out of date"

    def _start_kernel(self) -> None:
        """Boot the next step's kernel while this step computes: its start and imports then cost no waiting."""
        self.next_kernel = Kernel(self.settings, Path.cwd())

    def _stop_kernel(self) -> None:
        if self.next_kernel is not None:
            self.next_kernel.stop()

    def _teller(self, step: str, where: str, kernel: Kernel) -> Callable[[], None]:
        """Says now and then what the step is doing and how far the run is: a log shows that it is alive."""
        begun = last = time.monotonic()

        def tell() -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < max(TELL_SECONDS, TELL_SHARE * (now - self.begun)):
                return
            last = now
            doing = kernel.doing()
            self.say(
                f"{where}: {duration(now - begun)}{f', {doing}' if doing else ''}{self._far(step, now - begun)}"
            )

        return tell

    def _far(self, step: str, seconds: float) -> str:
        """`; the run: 61 %, about 3 min left` when `step` has run for `seconds`; empty before there is an estimate.

        A step that has outrun its estimate says so: a share would stand at 100 % for as long as it takes.
        """
        expected = self._expected(step)
        if any(each is None for each in expected.values()):
            return ""
        here = expected.pop(step) or 0.0
        after = sum(each or 0.0 for each in expected.values())
        if seconds > here:
            steps = f", about {duration(after)} for the steps behind it" if after else ""
            return f"; this step takes longer than estimated{steps}"
        so_far, left = time.monotonic() - self.begun, here - seconds + after
        return f"; the run: {100 * so_far / (so_far + left):.0f} %, about {duration(left)} left"

    def _left(self, step: str) -> str:
        """`(12 s so far, about 90 s left)` when `step` begins."""
        so_far = time.monotonic() - self.begun
        expected = self._expected(step)
        known = [seconds for seconds in expected.values() if seconds is not None]
        if len(known) < len(expected):
            return f" ({so_far:.0f} s so far)" if so_far >= 1 else ""
        return f" ({so_far:.0f} s so far, about {sum(known):.0f} s left)"

    def _expected(self, step: str) -> dict[str, float | None]:
        """Seconds of `step` and of those after it: the last run's, else from the demo's shares; None: unknown."""
        pending = [step, *(each for each in self.pending if each != step)]
        ran = [s for s in self.chosen if s not in pending and not self.state.steps[s].reused]
        share = sum(SHARES[s] for s in ran)
        seconds = sum(self.state.steps[s].seconds or 0.0 for s in ran)
        rate = seconds / share if share and seconds else None
        return {s: self.before.get(s) or (SHARES[s] * rate if rate else None) for s in pending}


def _refuse_full(folder: RunFolder) -> None:
    """Raise `UserError` where the disk has no room for a step's files: it would compute for nothing."""
    free = shutil.disk_usage(folder.root).free
    if free < ROOM:
        raise UserError(
            f"{folder.root}: {free // 1024} KB are free on its disk, a step needs {ROOM // 1024}; free some space, "
            "then the same command continues"
        )


def _chosen(steps: Sequence[str] | None) -> list[str]:
    unknown = [step for step in steps or () if step not in STEPS]
    if unknown:
        raise UserError(f"step {unknown[0]!r} does not exist; steps: {', '.join(STEPS)}")
    return [step for step in STEPS if steps is None or step in steps]


def _reached(folder: RunFolder, steps: Sequence[str], fail_on: str) -> bool:
    if fail_on not in SEVERITIES:
        raise UserError(f"fail_on {fail_on!r} is not allowed; allowed: warning, error")
    severe = SEVERITIES[SEVERITIES.index(fail_on) :]
    evidence = [found for step in steps if (found := folder.read_evidence(step))]
    return any(finding.severity in severe for one in evidence for finding in one.findings)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM (a scheduler's stop) is handled like Ctrl-C, so that the folder stays consistent."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
