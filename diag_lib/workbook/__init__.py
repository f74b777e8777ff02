"""How do the notebooks become a run, a report, a file to share?"""

from diag_lib.workbook.start import start

__all__ = ["compare", "export_single_file", "run_workbook", "start"]


def __getattr__(name: str) -> object:
    # Papermill and nbconvert take a second to import; a notebook needs only `start`.
    if name == "run_workbook":
        from diag_lib.workbook.run import run_workbook

        return run_workbook
    if name == "export_single_file":
        from diag_lib.workbook.export import export_single_file

        return export_single_file
    if name == "compare":
        from diag_lib.workbook.comparing import compare

        return compare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
