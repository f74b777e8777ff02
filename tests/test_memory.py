"""Does a training on the CPU stop giving its memory back at every step?"""

import subprocess
import sys

import pytest

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
for _ in range(10):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 30)
"""
"""Enough steps to settle: a kernel that takes idle pages away adds faults to some of them."""


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
