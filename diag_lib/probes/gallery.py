"""Which pictures are worth a look, and what do teacher and student say about each of their patches?"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Maps = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
ORDERS = ("most wrong first", "most right first", "as listed")


@dataclass(frozen=True)
class Gallery:
    """Pictures with their maps.

    `teacher` and `student` are (images, h, w) patch logits on one grid, `student` None where there is none;
    `scores` are the image logits that say how wrong a picture is judged, `judge` whose they are; `pixels(i)` is
    picture i as uint8 (H, W, 3), read when it is asked for.
    """

    paths: list[str]
    labels: Ints
    teacher: Maps
    student: Maps | None
    scores: npt.NDArray[np.float64]
    judge: str
    pixels: Callable[[int], npt.NDArray[np.uint8]]
    limits: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        sides = {"teacher": self.teacher}
        if self.student is not None:
            sides |= {"student": self.student, "difference": self.teacher - self.student}
        object.__setattr__(self, "limits", {name: limit(maps) for name, maps in sides.items()})

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the maps."""
        return self.teacher.shape[1], self.teacher.shape[2]

    def maps(self, image: int) -> dict[str, Maps]:
        """The maps (h, w) of one image: teacher, and student and teacher - student where there is a student."""
        shown = {"teacher": self.teacher[image]}
        if self.student is not None:
            shown |= {"student": self.student[image], "difference": self.teacher[image] - self.student[image]}
        return shown

    def order(self, label: int | None = None, by: str = ORDERS[0]) -> Ints:
        """Indices of the images of a class (None: of both), in one of `ORDERS`; unknown scores come last.

        How right: the image logit, counted negative for real images. Ties keep the table's order.
        """
        rows = np.arange(len(self.labels)) if label is None else np.flatnonzero(self.labels == label)
        if by == "as listed":
            return rows
        right = (2 * self.labels[rows] - 1) * self.scores[rows]
        return rows[np.argsort(right if by == "most wrong first" else -right, kind="stable")]


def limit(maps: Maps) -> float:
    """Half the width of a colour scale around 0 that holds 98% of the finite values; never zero."""
    sizes = np.abs(maps[np.isfinite(maps)])
    return float(np.quantile(sizes, 0.98)) or 1.0 if sizes.size else 1.0
