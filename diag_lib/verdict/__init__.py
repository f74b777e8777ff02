"""Step 06: what is wrong, how sure are we, what fixes it, and what did the fix gain?

The step reads the evidence of the others, lets every cause of `diag_lib.causes` speak in the order of
decision, runs the experiments that separate the suspects, and writes `verdict.json` and
`recommended.yaml`. What is claimed is decided by the intervals that are shown.
"""

from diag_lib.verdict.gates import GATES, Gate, gates
from diag_lib.verdict.judging import judge, strongest_rival
from diag_lib.verdict.result import SCHEMA, NamedCause, Open, VerdictResult
from diag_lib.verdict.step import run
from diag_lib.verdict.words import (
    HEADLINES,
    cause_table,
    describe_gates,
    open_table,
    patch_text,
    ruled_out_table,
    to_do,
)

__all__ = [
    "GATES",
    "HEADLINES",
    "SCHEMA",
    "Gate",
    "NamedCause",
    "Open",
    "VerdictResult",
    "cause_table",
    "describe_gates",
    "gates",
    "judge",
    "open_table",
    "patch_text",
    "ruled_out_table",
    "run",
    "strongest_rival",
    "to_do",
]
