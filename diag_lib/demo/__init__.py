"""Can the workbook be seen at work without data, weights and network? A small real dataset with known faults."""

from pathlib import Path

from diag_lib.demo.dataset import Recipe, build, ensure_data
from diag_lib.settings import Settings

__all__ = ["Recipe", "build", "ensure_data", "prepare"]


def prepare(fault: str | None = None, *, folder: Path = Path("data"), seed: int = 0) -> Settings:
    """Settings of the demo, its dataset made; with `fault`, one of `diag_lib.faults.FAULTS` injected.

    folder : where the dataset goes, `folder/demo` or `folder/demo-<fault>`.
    Raises UserError for an unknown fault, naming those that exist.
    """
    from diag_lib.faults import prepare as inject  # the fault table builds on this package
    from diag_lib.settings import load

    if fault is not None:
        return load("demo", inject(fault, folder, seed=seed).overrides)
    settings = load("demo", {"dataset.root": str(Path(folder) / "demo")})
    ensure_data(settings)
    return settings
