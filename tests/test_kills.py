"""Does a run that was killed three times, or lost its kernel, finish with the verdict of an undisturbed one?"""

from pathlib import Path
from typing import Any

import kill_runs
import pytest


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The settings file, and the verdict of an undisturbed run."""
    folder = tmp_path_factory.mktemp("calm")
    settings, out = kill_runs.prepare(folder), folder / "reports" / "run"
    undisturbed = kill_runs.start(settings, out)
    said, _ = undisturbed.communicate()
    assert undisturbed.returncode == 0, said
    return settings, kill_runs.verdict(out)


@pytest.mark.slow
def test_a_run_that_was_killed_three_times_finishes_with_the_same_verdict(
    tmp_path: Path, calm: tuple[Path, Any]
) -> None:
    """Early, in the middle and late; with its kernels, without them, and with them. Folder and cache are its own."""
    settings, out = calm[0], tmp_path / "killed" / "run"
    steps_seen = set()
    for at, kernels in ((("audit", 0.5), True), (("baseline", 2.0), False), (("distillation", 1.0), True)):
        process = kill_runs.start(settings, out)
        steps_seen.add(kill_runs.wait_until(process, out, *at))
        kill_runs.kill(process, kernels=kernels)
    assert len(steps_seen) == 3
    last = kill_runs.start(settings, out)
    said, _ = last.communicate()
    assert last.returncode == 0 and "Traceback" not in said, said
    assert "kept" in said  # what was finished before a kill is not done again
    assert kill_runs.verdict(out) == calm[1]


@pytest.mark.slow
def test_a_run_whose_kernel_was_killed_says_so_and_finishes_with_the_same_verdict(
    tmp_path: Path, calm: tuple[Path, Any]
) -> None:
    settings, out = calm[0], tmp_path / "killed" / "run"
    process = kill_runs.start(settings, out)
    assert kill_runs.wait_until(process, out, "baseline", 2.0) == "baseline"
    kill_runs.kill_kernel(process)
    said, _ = process.communicate()
    assert process.returncode == 3 and "BCE baseline: failed" in said and "The kernel died" in said, said
    page = (out / "04_baseline.html").read_text(encoding="utf-8")
    assert "This step failed" in page and "The kernel died" in page
    last = kill_runs.start(settings, out)
    said, _ = last.communicate()
    assert last.returncode == 0 and "Traceback" not in said, said
    assert "Dataset audit: kept" in said and "BCE baseline: done" in said
    assert kill_runs.verdict(out) == calm[1]
