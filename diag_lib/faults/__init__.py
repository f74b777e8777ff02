"""Does the workbook find a fault that was put there on purpose? Known faults, injected into the demo."""

from diag_lib.faults.inject import FAULTS, Prepared, prepare
from diag_lib.faults.scenes import Fault
from diag_lib.faults.variants import VARIANTS

__all__ = ["FAULTS", "VARIANTS", "Fault", "Prepared", "prepare"]
