"""How much memory is kept: by a training on the CPU between its steps, and by passes over many images?"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diag_lib.devices import keep_memory

STEPS = """
import resource, sys, torch
from diag_lib.devices import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
torch.set_num_threads(1)
maps = torch.randn(8, 8, 256, 256, requires_grad=True)
def step():
    (maps.relu() * 2).square().mean().backward()
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5)
"""


@pytest.mark.skipif(not keep_memory(), reason="the C library is not glibc")
def test_freed_maps_are_not_faulted_in_again() -> None:
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("keep", "give back")
    }
    assert faults["keep"] < 0.5 * faults["give back"]


PASSES = """
import sys
from pathlib import Path
from diag_lib import audit, settings
from diag_lib.evidence import RunFolder
from diag_lib.images import open_split, store
from diag_lib.teacher_cache import teacher_maps

store.MEMORY_LIMIT = 8 * 1024**2  # as if the images were too many to be kept
chosen = settings.load("base", {
    "dataset.root": sys.argv[1], "dataset.image_size": 256, "dataset.augment": "none", "teacher.weights": None,
    "teacher.arch": "tiny_ladeda", "runtime.device": "cpu", "runtime.threads": 1, "runtime.workers": 2,
})
run = RunFolder(sys.argv[2]).create()
audit.run(chosen, run, progress=False)
teacher_maps(chosen, open_split(chosen, "train", run), run, progress=False).image_logits()
status = Path("/proc/self/status").read_text().splitlines()
print(next(line for line in status if line.startswith("VmHWM")).split()[1])
"""
PIXELS = 256 * 256 * 3


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="NOT TESTED: peak memory needs /proc")
def test_audit_and_teacher_pass_do_not_keep_the_pixels(tmp_path: Path) -> None:
    """The peak over 400 images exceeds that over 100 by much less than what the further pixels take."""
    rng = np.random.default_rng(0)
    peaks = []
    for count in (50, 200):
        root = tmp_path / str(count)
        for split, each in (("train", count), ("val", 4)):
            for kind in ("real", "fake"):
                (root / split / kind).mkdir(parents=True)
                for number in range(each):
                    small = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                    picture = Image.fromarray(small).resize((256, 256), Image.Resampling.BICUBIC)
                    picture.save(root / split / kind / f"{number}.jpg")
        command = [sys.executable, "-c", PASSES, str(root), str(tmp_path / f"run{count}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(1024 * int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 0.5 * 300 * PIXELS, peaks
