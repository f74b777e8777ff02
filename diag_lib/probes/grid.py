"""Does the teacher's patch grid lie on the picture the way it should, or is it transposed, flipped or shifted?

A patch logit is a function of what its patch shows. So the teacher's map must be predictable from simple local
content (brightness, edges, residual noise) measured on the same grid; if it is more predictable after the map
has been transposed, flipped or shifted, the maps and the pictures have come apart. No labels and no trained
student are needed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from diag_lib.models.base import Geometry
from diag_lib.probes.agreement import (
    Interval,
    mean_interval_over_images,
    percentile,
    resampling_weights,
)

Floats = npt.NDArray[np.float64]
Transform = Callable[[Floats], Floats]

IDENTITY = "as is"
CLEAR_GAIN = 0.02  # R^2 that another grid must win before it is called the right one
CLEAR_RHO = (
    0.2  # correlation with the map of the student that a turn must win for certain; stray likeness gives .1
)
VISIBLE = 0.01  # R^2 below which the teacher's map does not follow local content at all
CLIP = 5.0  # robust standard deviations at which the teacher's outliers are clipped
RIDGE = 1e-6

_TURNS: dict[str, Transform] = {
    IDENTITY: lambda m: m,
    "flipped left-right": lambda m: m[..., ::-1],
    "flipped top-bottom": lambda m: m[..., ::-1, :],
    "turned by 180 degrees": lambda m: m[..., ::-1, ::-1],
    "transposed": lambda m: m.swapaxes(-1, -2),
    "transposed along the other diagonal": lambda m: m[..., ::-1, ::-1].swapaxes(-1, -2),
    "turned by 90 degrees": lambda m: np.rot90(m, 1, axes=(-2, -1)),
    "turned by 270 degrees": lambda m: np.rot90(m, 3, axes=(-2, -1)),
}
_SQUARE_ONLY = {
    name for name in _TURNS if "transposed" in name or name.endswith(("by 90 degrees", "270 degrees"))
}


@dataclass(frozen=True)
class GridCheck:
    """How well local content predicts the teacher's map on each candidate grid.

    `table` has one row a candidate: `grid`, `r2_a` (fitted, half A), `r2_b` (same coefficients, half B) and
    `student_rho` (mean correlation inside a picture with the student's map; NaN without one). `best` is chosen
    on half A; `identity` and `gain` (best minus identity) are measured on half B, with intervals over images.

    A student of local cells cannot learn a turned map: what it learned all the same lies where the picture is. So
    `turned` is the turn that agrees best with the student on half A, `turned_gain` its mean correlation minus that
    of the map as it is, on half B (None without a student).
    """

    table: pd.DataFrame
    best: str
    identity: Interval
    gain: Interval
    n: int
    turned: str = IDENTITY
    turned_gain: Interval | None = None
    turned_rho: float = 0.0

    @property
    def student_says_turned(self) -> bool:
        """Whether the student's own map proves that the teacher's is turned."""
        found = self.turned_gain
        clear = found is not None and min(found.ci[0], self.turned_rho) > CLEAR_RHO
        return self.turned != IDENTITY and clear

    @property
    def answer(self) -> str:
        """yes = the grids fit, no = another grid is proven better, undecided = the map follows no local content."""
        if self.student_says_turned:
            return "no"
        if self.best != IDENTITY and self.gain.value > CLEAR_GAIN and self.gain.ci[0] > 0:
            return "no"
        settled = self.best == IDENTITY or self.gain.ci[1] < CLEAR_GAIN or self.gain.value < CLEAR_GAIN
        return "yes" if settled and self.identity.ci[0] > VISIBLE else "undecided"


def grids(height: int, width: int) -> dict[str, Transform]:
    """Candidate ways to put a map back: the turns of the square, and shifts by one or two cells."""
    table = {name: turn for name, turn in _TURNS.items() if height == width or name not in _SQUARE_ONLY}
    for down, right in [(d, r) for d in (-1, 0, 1) for r in (-1, 0, 1)] + [(2, 0), (-2, 0), (0, 2), (0, -2)]:
        if (down, right) != (0, 0) and abs(down) < height and abs(right) < width:
            table[_shift_name(down, right)] = _shift(down, right)
    return table


def local_content(pixels: Tensor, geometry: Geometry, hw: tuple[int, int]) -> Floats:
    """What each patch shows: (B, 3, H, W) uint8 to (B, 6, h, w), averaged over the window a cell sees.

    Channels: brightness, horizontal and vertical edges, 3x3 residual, 2x2 residual, colour (logs of the last five).
    """
    x = pixels.float() / 255
    grey = x.mean(dim=1, keepdim=True)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    residual = grey - F.avg_pool2d(padded, 3, stride=1)
    edge_x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]).abs()
    edge_y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]).abs()
    pairs = (grey - padded[..., :-2, :-2]).abs()
    colour = x.std(dim=1, keepdim=True)
    channels = torch.cat([grey, edge_x, edge_y, residual.abs(), pairs, colour], dim=1)
    cells = _window_means(channels.double(), geometry, hw).numpy()
    cells[:, 1:] = np.log(cells[:, 1:] + 1e-3)
    return np.asarray(cells, dtype=np.float64)


def check_grid(
    teacher: npt.ArrayLike,
    content: Floats,
    in_half_a: npt.NDArray[np.bool_],
    student: npt.ArrayLike | None = None,
    seed: int = 0,
) -> GridCheck:
    """Compare candidate grids. `teacher` (n, h, w), `content` (n, k, h, w), `student` (n, h, w) or None.

    Both halves need at least two images; raises ValueError otherwise.
    """
    half = np.asarray(in_half_a, dtype=bool)
    if half.sum() < 2 or (~half).sum() < 2:
        raise ValueError("each half needs at least two images")
    maps = _robust(np.asarray(teacher, dtype=np.float64))
    x = _demeaned(content.reshape(len(content), content.shape[1], -1)).transpose(0, 2, 1)
    x = x / np.maximum(x.std(axis=(0, 1)), 1e-12)
    gram = np.einsum("npi,npj->ij", x[half], x[half])
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)) + 1e-12 * np.eye(len(gram))
    followed = (
        None if student is None else _demeaned(np.asarray(student, dtype=np.float64).reshape(len(maps), -1))
    )
    rows, errors, agreed = [], {}, {}
    for name, put_back in grids(*maps.shape[1:]).items():
        y = _demeaned(put_back(maps).reshape(len(maps), -1))
        beta = np.linalg.solve(gram, np.einsum("npi,np->i", x[half], y[half]))
        squared = ((y - x @ beta) ** 2).sum(axis=1)
        errors[name] = squared, (y**2).sum(axis=1)
        if followed is not None and name in _TURNS:
            agreed[name] = _rho(y, followed)
        rows.append(
            {
                "grid": name,
                "r2_a": _r2(*errors[name], half),
                "r2_b": _r2(*errors[name], ~half),
                "student_rho": np.nan if followed is None else _mean(_rho(y, followed)),
            }
        )
    table = pd.DataFrame(rows)
    best = (
        IDENTITY if table["r2_a"].isna().all() else str(table["grid"].iloc[int(np.nanargmax(table["r2_a"]))])
    )
    weights = resampling_weights(int((~half).sum()), seed)
    return GridCheck(
        table.sort_values("r2_a", ascending=False, ignore_index=True),
        best,
        _interval(errors[IDENTITY], None, ~half, weights),
        _interval(errors[best], errors[IDENTITY], ~half, weights),
        len(maps),
        *_turned(agreed, half),
    )


def _turned(agreed: dict[str, Floats], half: npt.NDArray[np.bool_]) -> tuple[str, Interval | None, float]:
    """The turn that agrees best with the student on half A; its paired gain over the map as it is and rho on half B."""
    on_a = {name: _mean(rho[half]) for name, rho in agreed.items()}
    finite = {name: value for name, value in on_a.items() if np.isfinite(value)}
    if IDENTITY not in finite:
        return IDENTITY, None, 0.0
    turned = max(finite, key=lambda name: (finite[name], name == IDENTITY))
    gain = mean_interval_over_images((agreed[turned] - agreed[IDENTITY])[~half])
    return turned, gain, _mean(agreed[turned][~half])


def _shift(down: int, right: int) -> Transform:
    return lambda m: np.roll(m, (down, right), axis=(-2, -1))


def _shift_name(down: int, right: int) -> str:
    parts = [
        f"{abs(n)} {word}"
        for n, word in ((down, "down" if down > 0 else "up"), (right, "right" if right > 0 else "left"))
        if n
    ]
    return "shifted " + " and ".join(parts)


def _window_means(channels: Tensor, geometry: Geometry, hw: tuple[int, int]) -> Tensor:
    """Means of (B, k, H, W) over each cell's window, by differences of running sums: (B, k, h, w)."""
    total = F.pad(channels.cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    spans = []
    for cells, side in zip(hw, channels.shape[-2:], strict=True):
        centre, width = geometry.centres(cells), max(geometry.receptive_field, 1.0)
        low = (centre - width / 2 + 0.5).round().long().clamp(0, side - 1)
        spans.append((low, torch.maximum((centre + width / 2 + 0.5).round().long().clamp(1, side), low + 1)))
    (top, bottom), (left, right) = spans
    rows = total[..., bottom, :] - total[..., top, :]
    area = (bottom - top)[:, None] * (right - left)[None, :]
    return (rows[..., right] - rows[..., left]) / area


def _robust(maps: Floats) -> Floats:
    centre = np.median(maps)
    spread = 1.4826 * np.median(np.abs(maps - centre)) or maps.std() or 1.0
    return np.clip((maps - centre) / spread, -CLIP, CLIP)


def _demeaned(x: Floats) -> Floats:
    return np.asarray(x - x.mean(axis=-1, keepdims=True))


def _r2(errors: Floats, totals: Floats, rows: npt.NDArray[np.bool_]) -> float:
    total = totals[rows].sum()
    return float(1 - errors[rows].sum() / total) if total > 0 else float("nan")


def _rho(y: Floats, student: Floats) -> Floats:
    """Correlation inside each picture (n,); NaN where a side is flat."""
    norm = np.sqrt((y**2).sum(1) * (student**2).sum(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(norm > 0, (y * student).sum(1) / norm, np.nan)


def _mean(values: Floats) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _interval(
    one: tuple[Floats, Floats],
    other: tuple[Floats, Floats] | None,
    rows: npt.NDArray[np.bool_],
    weights: Floats,
) -> Interval:
    """R^2 of `one` (minus that of `other`), resampling images."""

    def r2(pair: tuple[Floats, Floats], w: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1 - (w @ pair[0][rows]) / (w @ pair[1][rows]))

    ones = np.ones((1, int(rows.sum())))
    value, resampled = r2(one, ones), r2(one, weights)
    if other is not None:
        value, resampled = value - r2(other, ones), resampled - r2(other, weights)
    return Interval(float(value[0]), percentile(resampled))
