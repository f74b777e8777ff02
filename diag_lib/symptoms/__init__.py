"""What does *your* run show? Curves, loss shares and the guide's symptom, before any cause is looked for."""

from diag_lib.symptoms.checks import LN2, NAMES
from diag_lib.symptoms.curves import Curve, describe
from diag_lib.symptoms.step import (
    HOW_TO_RECORD,
    SymptomsResult,
    curve_table,
    diagnose,
    next_step,
    recorded_findings,
    run,
)

__all__ = [
    "HOW_TO_RECORD",
    "LN2",
    "NAMES",
    "Curve",
    "SymptomsResult",
    "curve_table",
    "describe",
    "diagnose",
    "next_step",
    "recorded_findings",
    "run",
]
