"""How are two ways of doing the same compared on a machine that others use too?

Every ratio is taken inside one run, from repetitions of both ways that alternate, so that the load of the
machine meets both. Absolute times are kept beside the ratios to plan with, never as a claim.
"""

import gc
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Times:
    """Seconds on the clock, and seconds of processor time in this process (all its threads)."""

    wall: float
    cpu: float

    def __add__(self, other: "Times") -> "Times":
        return Times(self.wall + other.wall, self.cpu + other.cpu)

    def __truediv__(self, by: float) -> "Times":
        return Times(self.wall / by, self.cpu / by)


def timed(work: Callable[[], object]) -> Times:
    """Run `work` once. What it leaves behind is collected before the clock starts, not on its bill."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Times(time.perf_counter() - wall, time.process_time() - cpu)


def alternate(
    first: Callable[[], object], second: Callable[[], object], times: int
) -> list[tuple[Times, Times]]:
    """Pairs of times of both, in turns; which of them starts changes from pair to pair."""
    pairs = []
    for repetition in range(times):
        if repetition % 2:
            after = timed(second)
            pairs.append((timed(first), after))
        else:
            before = timed(first)
            pairs.append((before, timed(second)))
    return pairs


@dataclass
class Report:
    """Ratios by name, their spread over the repetitions, the seconds behind them and the conditions.

    `ratios` holds, for each number that is promised, `<name>` (by the clock) and `<name>_cpu` (by processor
    time, which the load of the machine moves less). `further` holds what is no ratio: curves, memory, the peer.
    """

    benchmark: str
    size: str
    ratios: dict[str, float] = field(default_factory=dict)
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    further: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, pairs: Sequence[tuple[Times, Times]]) -> None:
        """The median over pairs of first / second, with the lowest and the highest."""
        for suffix, kind in (("", "wall"), ("_cpu", "cpu")):
            values = [getattr(first, kind) / getattr(second, kind) for first, second in pairs]
            self.ratios[name + suffix] = float(np.median(values))
            self.spread[name + suffix] = (min(values), max(values))

    def as_json(self) -> dict[str, Any]:
        """The promised numbers at the top, everything else below them."""
        return {
            "schema": "diag/benchmark/1",
            "benchmark": self.benchmark,
            "size": self.size,
            **self.ratios,
            **self.further,
            "spread": {name: list(ends) for name, ends in self.spread.items()},
            "seconds": self.seconds,
            "conditions": self.conditions,
        }


def machine(threads: int) -> dict[str, Any]:
    """What the numbers were measured on, without naming it."""
    import torch

    return {
        "threads": threads,
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def load() -> float | None:
    """Runnable processes, averaged over the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
