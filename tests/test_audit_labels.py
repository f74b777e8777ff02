"""Are wrong labels and swapped classes found, by the audit's own statistics and by what later steps have left?"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_audit import as_png, audited, make, texture

from diag_lib.audit import polarity
from diag_lib.evidence import RunFolder
from diag_lib.fixes import Fix
from diag_lib.images import read_table
from diag_lib.probes import labels as held_out
from diag_lib.settings import load
from diag_lib.verdict import NamedCause
from diag_lib.verdict.step import with_labels_listed


def scores_of(frame: pd.DataFrame, wrong: set[str], sign: float = 1.0) -> pd.DataFrame:
    """A good teacher's scores in the thousands: it knows the truth, which the labels of `wrong` are not."""
    rng = np.random.default_rng(0)
    truth = np.where(frame["path"].isin(wrong), 1 - frame["label"], frame["label"])
    score = sign * (3000 * (truth - 0.5) + rng.normal(0, 700, len(frame)))
    return frame[["path", "split", "label", "source"]].assign(score=score)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that no statistic tells apart."""
    return make(tmp_path_factory.mktemp("labels") / "data", each=50)


def test_the_teachers_scores_of_an_earlier_step_name_the_wrong_labels(root: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run").create()
    alone = audited(root, run.root)
    assert alone.tables["suspects"].empty and "picture statistics" in alone.finding("labels").message
    assert alone.finding("polarity").answer == "undecided"
    wrong = set(alone.frame["path"].sample(10, random_state=1))
    scores_of(alone.frame, wrong).to_parquet(run.artifact("teacher_scores.parquet"))
    again = audited(root, run.root)
    found = again.tables["suspects"]
    assert set(found["path"].head(10)) == wrong and len(found) <= 14
    assert set(found["judges"]) == {"teacher"} and found["probability_of_label"].is_monotonic_increasing
    told = again.finding("labels")
    assert told.answer == "undecided" and told.data["file"] == "artifacts/label_issues.parquet"
    assert pd.read_parquet(run.artifact("label_issues.parquet"))["path"].tolist() == found["path"].tolist()
    assert again.finding("polarity").answer == "no"  # 90% of the teacher's opinion agrees


def test_a_teacher_that_ranks_the_wrong_way_round_speaks_of_swapped_classes(
    root: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run").create()
    first = audited(root, run.root)
    scores_of(first.frame, set(), sign=-1).to_parquet(run.artifact("teacher_scores.parquet"))
    again = audited(root, run.root)
    found = again.finding("polarity")
    assert (found.answer, found.severity) == ("yes", "warning") and "teacher on val" in found.message
    assert again.tables["suspects"].empty  # whoever is always wrong is no judge


@pytest.mark.parametrize("installed", [True, False])
def test_flipped_labels_are_ranked_first(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if installed:
        pytest.importorskip("cleanlab")
    monkeypatch.setattr(held_out, "has_cleanlab", lambda: installed)
    rng = np.random.default_rng(3)
    truth = np.arange(400) % 2
    labels = truth.copy()
    flipped = rng.choice(400, 40, replace=False)
    labels[flipped] = 1 - labels[flipped]
    fake = held_out.probability_of_fake(2 * truth + rng.normal(0, 0.5, 400), labels, seed=0)
    assert fake.min() > 0 and fake.max() < 1
    chosen = held_out.issues(labels, fake)
    hits = len(np.intersect1d(chosen[:40], flipped))
    assert hits >= 0.9 * len(chosen[:40]) and hits >= (
        36 if installed else 24
    )  # the simpler rule is more timid
    own = np.where(labels == 1, fake, 1 - fake)[chosen]
    assert (np.diff(own) >= 0).all()


def test_without_cleanlab_the_report_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "has_cleanlab", lambda: False)

    def save(image: Image.Image, path: Path, label: int) -> None:
        as_png(Image.eval(image, lambda v: int(v * 0.4)) if label else image, path, label)

    told = audited(make(tmp_path / "data", each=40, save=save)).finding("labels")
    assert "pip install 'diag-lib[labels]'" in told.message


# ---- polarity


def test_generators_marks_in_real_files_and_cameras_in_fakes(tmp_path: Path) -> None:
    def save(image: Image.Image, path: Path, label: int) -> None:
        if label:  # called fake, but taken by a camera
            exif = Image.Exif()
            exif[0x010F], exif[0x0110] = "Canon", "EOS 5D"
            image.save(path.with_suffix(".png"), exif=exif)
        else:
            made = PngInfo()
            made.add_text("parameters", "a house, steps: 20")
            image.save(path.with_suffix(".png"), pnginfo=made)

    result = audited(make(tmp_path / "data", each=10, save=save))
    found = result.finding("polarity")
    assert (found.answer, found.severity) == ("yes", "warning") and "marks of generators" in found.message
    assert result.finding("shortcut.camera").data["kind"] == "header"
    assert set(result.frame["camera"]) == {"", "Canon EOS 5D"}


@pytest.mark.parametrize("swapped", [True, False])
def test_words_in_the_names(tmp_path: Path, swapped: bool) -> None:
    root = make(tmp_path / "data", each=8)
    for file in sorted(root.rglob("*.png")):
        said = ("real", "fake")[(file.parent.name == "fake") != swapped]
        file.rename(file.with_name(f"{said}_{file.name}"))
    found = audited(root).finding("polarity")
    assert found.answer == ("yes" if swapped else "no")
    assert found.data["folders"] == "fake=0, real=1" and "ImageFolder" in found.message


def test_names_that_are_swapped_in_one_split_alone_are_seen(tmp_path: Path) -> None:
    """Over both splits half of the names would speak against the labels, and half for them."""
    root = make(tmp_path / "data", each=12)
    for file in sorted(root.rglob("*.png")):
        swapped = file.parent.parent.name == "train"
        said = ("real", "fake")[(file.parent.name == "fake") != swapped]
        file.rename(file.with_name(f"{said}_{file.name}"))
    found = audited(root).finding("polarity")
    assert found.answer == "yes" and "words in the names of train: 100% of 24 against" in found.message


def test_a_generator_that_holds_both_classes_is_no_witness(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for split in ("train", "val"):
        for label, kind in enumerate(("0_real", "1_fake")):
            folder = root / split / "progan" / kind
            folder.mkdir(parents=True)
            for i in range(8):
                texture(i + 100 * label + 1000 * len(split)).save(folder / f"{i}.png")
    result = audited(root)
    assert result.finding("polarity").answer == "undecided"
    assert polarity.WORDS[1].search("progan") and not polarity.WORDS[1].search("organic")


def test_the_verdict_lists_doubtful_train_labels_by_all_judges_that_there_are(
    root: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run").create()
    settings = load("base", {"dataset.root": str(root), "dataset.image_size": 32})
    frame = read_table(settings).frame
    noise = NamedCause("label_noise", "established", "", "", (), Fix("Correct them."), "direct", None, (), "")
    other = replace(noise, id="leakage")
    assert with_labels_listed((noise,), settings, run) == (noise,), "nobody has judged yet"
    wrong = set(frame.loc[frame["split"] == "train", "path"].sample(10, random_state=1))
    scores_of(frame, wrong).to_parquet(run.artifact("teacher_scores.parquet"))
    told, kept = with_labels_listed((noise, other), settings, run)
    assert "labels that teacher contradict" in told.fix.actions[0] and kept == other
    table = pd.read_csv(run.root / "artifacts" / "doubtful_labels.csv")
    assert len(wrong & set(table["path"])) >= max(5, 0.6 * len(table)) and set(table["split"]) == {"train"}
    assert table["probability_of_label"].is_monotonic_increasing
