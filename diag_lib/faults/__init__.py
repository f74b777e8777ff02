"""Does the workbook find a fault that was put there on purpose? Known faults, injected into the demo."""

from diag_lib.faults.inject import FAULTS, Fault, Prepared, prepare

__all__ = ["FAULTS", "Fault", "Prepared", "prepare"]
