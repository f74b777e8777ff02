"""Do the pictures that need a decision reach a person, and does the decision reach the next run?"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_audit import audited, make, texture

from diag_lib import audit, widgets
from diag_lib.audit import curation
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.live import STATIC

HOSTILE = "<img src=x onerror=window.hacked=1>.png"
VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A leak, a picture with two labels, a repeat, seven black pictures; one name is markup."""
    data = make(tmp_path_factory.mktemp("curation") / "data", each=12)
    (data / "val/real/leak.png").write_bytes((data / "train/real/000.png").read_bytes())
    (data / "train/fake" / HOSTILE).write_bytes((data / "train/real/001.png").read_bytes())
    (data / "train/real/repeat.png").write_bytes((data / "train/real/002.png").read_bytes())
    for i in range(7):
        dark = np.asarray(texture(900 + i)) // 24
        Image.fromarray(dark).save(data / f"train/fake/dark{i}.png")
    return data


@pytest.fixture(scope="module")
def result(root: Path) -> audit.AuditResult:
    return audited(root)


@pytest.fixture
def run(root: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").create()


def test_issues_name_the_pictures_the_gravest_first(result: audit.AuditResult) -> None:
    found = curation.issues(result)
    assert list(found) == ["both labels", "leaked", "dark", "repeated"]
    assert set(found["both labels"]["path"]) == {f"train/fake/{HOSTILE}", "train/real/001.png"}
    assert found["leaked"]["path"].tolist() == ["val/real/leak.png"]
    assert found["repeated"]["path"].tolist() == ["train/real/repeat.png"]
    assert len(found["dark"]) == 7 and "copy of train/real/000.png" in found["leaked"]["why"][0]


def test_ticks_become_a_file_that_the_next_audit_honours_and_states(
    root: Path, result: audit.AuditResult, run: RunFolder
) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    board = widgets.curation_board(result, run)
    assert set(board.shown["path"]) == {f"train/fake/{HOSTILE}", "train/real/001.png"}
    tile = next(tile for tile in board.tiles if tile.path == f"train/fake/{HOSTILE}")
    tile.choice.value = "relabel"
    board.issue.value = "leaked"
    board.tiles[0].choice.value = "exclude"
    board.issue.value = "dark"
    board.next.click()
    assert [tile.path is not None for tile in board.tiles] == [True, *[False] * 5]  # the seventh
    board.all_of_issue.click()
    board.issue.value = "leaked"
    assert board.tiles[0].choice.value == "exclude"  # remembered
    board.write.click()
    assert "8 to exclude, 1 to relabel" in board.picture.value and "run/curation.csv" in board.picture.value
    table = pd.read_csv(run.root / "curation.csv", keep_default_na=False)
    assert table.set_index("path").loc[f"train/fake/{HOSTILE}"].tolist() == ["relabel", "real"]
    assert (table["action"] == "exclude").sum() == 8

    again = audited(root, run.root.parent / "again", **{"dataset.curation": str(run.root / "curation.csv")})
    assert again.finding("leakage").data["n_leaked"] == 0 and again.finding("label_conflict").value == 0
    stated = again.finding("ignored")
    assert stated.answer == "yes" and "8 excluded" in stated.message and "1 relabelled" in stated.message
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before

    later = widgets.curation_board(again, run)  # with the file in force: what it says stays as it is
    later.save()
    pd.testing.assert_frame_equal(pd.read_csv(run.root / "curation.csv", keep_default_na=False), table)


def test_a_decision_can_be_taken_back_and_the_users_own_file_stays(
    root: Path, result: audit.AuditResult, run: RunFolder, tmp_path: Path
) -> None:
    own = tmp_path / "own.csv"
    own.write_text("path,action\ntrain/real/005.png,exclude\n")
    with_own = audited(root, tmp_path / "own_run", **{"dataset.curation": str(own)})
    curation.save(with_own, run, {"val/real/leak.png": "exclude"})
    assert set(pd.read_csv(run.root / "curation.csv")["path"]) == {"train/real/005.png", "val/real/leak.png"}
    board = widgets.curation_board(result, run)
    board.issue.value = "leaked"
    board.tiles[0].choice.value = "keep"
    board.save()
    assert "val/real/leak.png" not in set(pd.read_csv(run.root / "curation.csv")["path"])
    with pytest.raises(UserError, match="not in the dataset"):
        curation.save(result, run, {"no/such.png": "exclude"})


def test_without_widgets_the_pictures_are_shown_and_names_stay_text(
    result: audit.AuditResult, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = widgets.curation_board(result, run)
    assert VIEW in board._repr_mimebundle_()
    monkeypatch.setenv(STATIC, "1")
    bundle = board._repr_mimebundle_()
    assert VIEW not in bundle
    page = bundle["text/html"]
    assert page.count("<img src=") == 2 + 1 + 6 + 1 and "dark: 7, the first 6" in page
    assert HOSTILE not in page and "&lt;img src=x" in page


def test_a_clean_set_asks_for_nothing(tmp_path: Path) -> None:
    board = widgets.curation_board(audited(make(tmp_path / "data", each=4)), tmp_path / "run")
    assert board.issues == {} and "no picture that needs a decision" in board.still()
    board.next.click()
    board.all_of_issue.click()
    assert board.save() is not None  # an empty file, which changes nothing
