"""Which student patches lie where a teacher patch lies?"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diag_lib.models.base import Geometry


@dataclass(frozen=True)
class Window:
    """Student cells inside each teacher patch: `kernel` cells every `stride`, from cell `start` on."""

    kernel: int
    stride: int
    start: int


def exact_window(student: Geometry, teacher: Geometry) -> Window | None:
    """The block of student cells that fills a teacher patch exactly and has its centre, or None.

    For LaDeDa9 over Tiny-LaDeDa that is 3 cells every 4, from 0 on.
    """
    step = teacher.stride / student.stride
    kernel = (teacher.receptive_field - student.receptive_field) / student.stride + 1
    start = (teacher.offset - student.offset) / student.stride - (kernel - 1) / 2
    if min(step, kernel) < 1 or start < 0 or not all(v.is_integer() for v in (step, kernel, start)):
        return None
    return Window(int(kernel), int(step), int(start))


def align(
    student_map: Tensor, student_geometry: Geometry, teacher_geometry: Geometry, teacher_hw: tuple[int, int]
) -> Tensor:
    """The student's patch logits on the teacher's grid: (B, 1, h, w) -> (B, 1, *teacher_hw).

    Where whole student cells fill each teacher patch, their mean; otherwise bilinear samples of the student's
    map at the teacher's patch centres (held constant beyond the outermost student centres).
    """
    window = exact_window(student_geometry, teacher_geometry)
    if window is not None and _covers(window, student_map, teacher_hw):
        inside = student_map[..., window.start :, window.start :]
        pooled = F.avg_pool2d(inside, window.kernel, window.stride)
        return pooled[..., : teacher_hw[0], : teacher_hw[1]]
    return _sample_centres(student_map, student_geometry, teacher_geometry, teacher_hw)


def _covers(window: Window, student_map: Tensor, teacher_hw: tuple[int, int]) -> bool:
    return all(
        window.start + (teacher - 1) * window.stride + window.kernel <= student
        for teacher, student in zip(teacher_hw, student_map.shape[-2:], strict=True)
    )


def _sample_centres(
    student_map: Tensor, student: Geometry, teacher: Geometry, teacher_hw: tuple[int, int]
) -> Tensor:
    rows, columns = (
        _interpolation(cells, teacher_cells, student, teacher).to(student_map)
        for cells, teacher_cells in zip(student_map.shape[-2:], teacher_hw, strict=True)
    )
    return torch.einsum("th,bchw,sw->bcts", rows, student_map, columns)


def _interpolation(cells: int, teacher_cells: int, student: Geometry, teacher: Geometry) -> Tensor:
    """Linear interpolation weights (teacher_cells, cells) from student centres to teacher centres."""
    position = (teacher.centres(teacher_cells) - student.offset) / student.stride
    position = position.clamp(0, cells - 1)
    left = position.floor().clamp(max=max(cells - 2, 0)).long()
    share = position - left
    weights = torch.zeros(teacher_cells, cells, dtype=torch.float64)
    row = torch.arange(teacher_cells)
    weights[row, left] = 1 - share
    if cells > 1:
        weights[row, left + 1] = share
    return weights
