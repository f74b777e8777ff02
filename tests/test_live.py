"""A stopped cell: one line instead of a traceback, and a user's mistake is a line too."""

from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from diag_lib import live
from diag_lib.errors import UserError


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> InteractiveShell:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.delenv(live.STATIC, raising=False)
    made = InteractiveShell()
    monkeypatch.setattr(live, "_shell", lambda: made)
    made.user_ns["UserError"] = UserError
    return made


def test_a_stopped_cell_says_what_is_kept(shell: InteractiveShell) -> None:
    live.end_well_when_stopped(lambda: "2 trainings are kept")
    with capture_output() as seen:
        result = shell.run_cell("raise KeyboardInterrupt")
    assert not result.success  # the cells after it wait
    assert "2 trainings are kept" in str([*seen.outputs, seen.stdout])
    assert "Traceback" not in seen.stdout + seen.stderr


def test_a_mistake_of_the_user_is_one_line(shell: InteractiveShell) -> None:
    with capture_output() as seen:
        shell.run_cell("raise UserError('dataset.root: nowhere does not exist')")
    assert seen.stdout.strip() == "UserError: dataset.root: nowhere does not exist"


def test_batch_kernels_keep_their_traceback(shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(live.STATIC, "1")
    live.end_well_when_stopped(lambda: "kept")
    assert KeyboardInterrupt not in shell.custom_exceptions
