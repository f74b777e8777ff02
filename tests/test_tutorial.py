"""Does the tutorial run from any folder, and does it end with a working training?"""

import re
from pathlib import Path

import nbformat
import papermill
import pytest

from diag_lib.settings import load

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.ipynb"


@pytest.mark.slow
def test_the_tutorial_repairs_its_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    out = tmp_path / "out.ipynb"
    small = {"train": 150, "val": 100, "overrides": {"runtime.threads": 1}}
    papermill.execute_notebook(str(TUTORIAL), str(out), small, kernel_name="python3", progress_bar=False)
    printed = "".join(
        output.get("text", "") for cell in nbformat.read(out, 4).cells for output in cell.get("outputs", [])
    )
    assert "teacher_domain_shift" in printed
    before, after = (
        [
            float(value)
            for value in re.search(rf"{name}: validation AUC ([\d.]+) \[([\d.]+)", printed).groups()
        ]
        for name in ("before", "after")
    )
    assert after[1] > before[0] + 0.1
    recommended = load(tmp_path / "diag-tutorial" / "run" / "recommended.yaml")
    assert recommended.training.distillation.alpha_distill == 0
    assert {path.name for path in tmp_path.iterdir()} <= {"out.ipynb", "diag-tutorial"}


def test_every_notebook_says_how_to_install():
    for path in [TUTORIAL, *sorted((ROOT / "notebooks").glob("*.ipynb"))]:
        first = nbformat.read(path, 4).cells[0]
        assert first.cell_type == "markdown" and '%pip install -q "PATH[demo]"' in first.source, path.name
        assert "checkout" in first.source and "diag_lib-….whl" in first.source  # what PATH may be
        assert "ADDRESS" not in first.source
