"""Does a run that was killed again and again, and lost a kernel, finish with the verdict of an undisturbed one?"""

from pathlib import Path

import kill_runs
import pytest

STEPS = (
    "--steps",
    "01,04-06",
)  # those in which it is disturbed, and the verdict: the others only cost time here


@pytest.mark.slow
def test_a_run_that_was_killed_and_lost_a_kernel_finishes_with_the_same_verdict(tmp_path: Path) -> None:
    """Killed early with its kernels and later without them; then a kernel dies alone. Its cache is its own."""
    settings, out = kill_runs.prepare(tmp_path / "calm"), tmp_path / "killed" / "run"
    undisturbed = kill_runs.start(settings, tmp_path / "calm" / "run", *STEPS)
    said, _ = undisturbed.communicate()
    assert undisturbed.returncode == 0, said

    for step, seconds, kernels in (("audit", 0.5, True), ("baseline", 2.0, False)):
        process = kill_runs.start(settings, out, *STEPS)
        assert kill_runs.wait_until(process, out, step, seconds) == step
        kill_runs.kill(process, kernels=kernels)

    process = kill_runs.start(settings, out, *STEPS)
    assert kill_runs.wait_until(process, out, "distillation", 1.0) == "distillation"
    kill_runs.kill_kernel(process)
    said, _ = process.communicate()
    assert process.returncode == 3 and "Weighted distillation training: failed" in said, said
    assert "The kernel died" in said, said
    page = (out / "05_distillation.html").read_text(encoding="utf-8")
    assert "This step failed" in page and "The kernel died" in page

    last = kill_runs.start(settings, out, *STEPS)
    said, _ = last.communicate()
    assert last.returncode == 0 and "Traceback" not in said, said
    assert "Dataset audit: kept" in said and "Weighted distillation training: done" in said
    assert kill_runs.verdict(out) == kill_runs.verdict(tmp_path / "calm" / "run")
