"""What do the checks of the audit share: what they are given, and what they hand back?"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from diag_lib.evidence import Finding, RunFolder
from diag_lib.settings import Settings

CLASS_NAMES = ("real", "fake")


@dataclass(frozen=True)
class Case:
    """What every check reads.

    `frame`: a row per image, readable or not (columns of `scan.COLUMNS` after path, label, split, source).
    `sample`: a row for each of at most `scan.SAMPLE` readable images with the measures that cost more.
    """

    settings: Settings
    run: RunFolder
    frame: pd.DataFrame
    sample: pd.DataFrame
    notes: list[tuple[str, str]] = field(default_factory=list)
    curated: dict[str, int] = field(default_factory=dict)

    @property
    def readable(self) -> pd.DataFrame:
        """The rows whose file was decoded completely, index 0..n-1."""
        return self.frame[self.frame["reason"] == ""].reset_index(drop=True)


@dataclass(frozen=True)
class Part:
    """What a check hands back: findings, named numbers, and tables for pictures and files."""

    findings: list[Finding]
    numbers: dict[str, float | int | str | None] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


def share_interval(count: int, n: int) -> tuple[float, float]:
    """Two-sided 95% Wilson (1927) interval of a share count / n; (0, 1) without any."""
    if n == 0:
        return (0.0, 1.0)
    z, p = 1.959964, count / n
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return (max(0.0, float((middle - half) / scale)), min(1.0, float((middle + half) / scale)))


def listed(items: list[str], most: int = 3) -> str:
    """ "a, b, c and 4 more"."""
    shown = ", ".join(items[:most])
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown
