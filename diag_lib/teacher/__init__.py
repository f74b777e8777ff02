"""Does the teacher know anything about these images, and if not: is it the teacher or how it is used?"""

from diag_lib.teacher.reading import WIRING, describe_roc, guide_table, next_step, patch_table
from diag_lib.teacher.step import HeatMap, TeacherResult, roc_band, run

__all__ = [
    "WIRING",
    "HeatMap",
    "TeacherResult",
    "describe_roc",
    "guide_table",
    "next_step",
    "patch_table",
    "roc_band",
    "run",
]
