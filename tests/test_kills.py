"""Does a run that was killed three times finish with the verdict of an undisturbed one?"""

from pathlib import Path

import kill_runs
import pytest


@pytest.mark.slow
def test_a_run_that_was_killed_three_times_finishes_with_the_same_verdict(tmp_path: Path) -> None:
    """Early, in the middle and late; with its kernels, without them, and with them. Folder and cache are its own."""
    settings = kill_runs.prepare(tmp_path)
    calm, out = tmp_path / "calm" / "run", tmp_path / "killed" / "run"
    undisturbed = kill_runs.start(settings, calm)
    said, _ = undisturbed.communicate()
    assert undisturbed.returncode == 0, said
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
    assert kill_runs.verdict(out) == kill_runs.verdict(calm)
