"""Does the audit find what is planted in a data set, and nothing in a clean one?"""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from diag_lib import audit
from diag_lib import settings as settings_module
from diag_lib.audit import jpeg, scan, shortcuts, spectrum
from diag_lib.audit.part import share_interval
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.images import decode_bytes, hashing
from diag_lib.statistics import auc

SIDE = 32
Save = Callable[[Image.Image, Path, int], None]


def texture(seed: int, side: int = SIDE) -> Image.Image:
    """A picture that no other seed gives: smooth shapes, some fine noise, colours of photographs."""
    rng = np.random.default_rng([seed, 77])
    coarse = Image.fromarray(rng.integers(20, 236, (6, 6, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    noise = rng.normal(0, 6, (side, side, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def as_png(image: Image.Image, path: Path, label: int) -> None:
    image.save(path.with_suffix(".png"))


def as_jpeg(quality: int) -> Save:
    return lambda image, path, label: image.save(path.with_suffix(".jpg"), quality=quality)


def make(root: Path, each: int = 60, val: int | None = None, save: Save = as_png, fakes: float = 1.0) -> Path:
    number = 0
    for split, count in (("train", each), ("val", each if val is None else val)):
        for label, kind in enumerate(("real", "fake")):
            folder = root / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(int(count * (fakes if label and split == "train" else 1))):
                number += 1
                save(texture(number), folder / f"{i:03d}", label)
    return root


def audited(root: Path, run: Path | None = None, **keys: Any) -> audit.AuditResult:
    settings = settings_module.load("base", {"dataset.root": str(root), "dataset.image_size": SIDE, **keys})
    return audit.run(settings, run or root.parent / f"run_{root.name}", progress=False)


def raised(result: audit.AuditResult) -> set[str]:
    return {
        f.id.removeprefix("audit.") for f in result.evidence.findings if f.severity in ("warning", "error")
    }


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("audit") / "clean", each=200)


@pytest.fixture(scope="module")
def clean_result(clean: Path) -> audit.AuditResult:
    return audited(clean)


def copy_of(root: Path, tmp_path: Path) -> Path:
    shutil.copytree(root, tmp_path / "data")
    return tmp_path / "data"


def test_a_clean_set_of_200_per_class_triggers_nothing(clean_result: audit.AuditResult) -> None:
    assert raised(clean_result) == set()
    assert not [
        f.id for f in clean_result.evidence.findings if f.answer == "yes" and f.id != "audit.sample_size"
    ]
    assert clean_result.finding("shortcut.joint").answer == "no"
    assert clean_result.finding("shortcut.joint").ci == (0.5, 0.5)
    assert clean_result.evidence.numbers["n_train_real"] == 200
    assert "step 02" in audit.next_step(clean_result)


def test_evidence_and_tables_are_written(clean: Path, clean_result: audit.AuditResult) -> None:
    run = RunFolder(clean.parent / "run_clean")
    written = run.read_evidence("audit")
    assert written is not None and {f.id for f in written.findings} >= {
        f"audit.{name}" for name in ("unreadable", "imbalance", "duplicates", "leakage", "label_conflict",
                                     "shortcut.joint", "drift", "normalization")
    }  # fmt: skip
    table = pd.read_parquet(run.artifact("audit.parquet"))
    assert len(table) == 800 and "file" not in table and str(clean) not in table.to_csv()
    assert list(pd.read_parquet(run.artifact("leakage.parquet"))) == [
        "val_path", "train_path", "distance", "kind", "val_label", "train_label", "val_source", "train_source",
        "conflict",
    ]  # fmt: skip


def test_a_stopped_audit_goes_on_with_the_files_that_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "data", each=5)
    whole = audited(root, tmp_path / "undisturbed")
    monkeypatch.setattr(scan, "BLOCK", 6)
    seen: list[str] = []
    real = scan.measure

    def stopped(file: str, fitting: scan.Fitting | None) -> scan.Row:
        if len(seen) == 15:
            raise KeyboardInterrupt
        seen.append(file)
        return real(file, fitting)

    monkeypatch.setattr(scan, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        audited(root, tmp_path / "run")
    monkeypatch.setattr(scan, "measure", lambda file, fitting: (seen.append(file), real(file, fitting))[1])
    del seen[12:]  # two blocks were kept, the third was not finished
    again = audited(root, tmp_path / "run")
    assert len(seen) == len(set(seen)) == 20
    pd.testing.assert_frame_equal(again.frame, whole.frame)
    pd.testing.assert_frame_equal(again.sample, whole.sample)
    assert not list((tmp_path / "run").rglob("*.partial.parquet"))


def test_only_new_files_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "data", each=4)
    seen: list[str] = []
    real = scan.measure
    monkeypatch.setattr(scan, "measure", lambda file, fitting: (seen.append(file), real(file, fitting))[1])
    first = audited(root)
    assert len(seen) == 16
    texture(999).save(root / "val/real/new.png")
    again = audited(root)
    assert len(seen) == 17 and len(again.frame) == 17
    common = (
        again.frame[again.frame["path"] != "val/real/new.png"].drop(columns="file").reset_index(drop=True)
    )
    pd.testing.assert_frame_equal(common, first.frame.drop(columns="file"), check_dtype=False)
    (tmp_path / "run_data/artifacts/audit.parquet").write_bytes(b"PAR1 damaged")
    assert len(audited(root).frame) == 17 and len(seen) == 34


def test_processes_give_what_one_thread_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "data", each=3)
    files = [(str(path), None) for path in sorted(root.rglob("*.png"))]
    alone = scan.over_files(scan.measure, files, 1, "")
    monkeypatch.setattr(scan, "IN_PROCESS", 0)
    pd.testing.assert_frame_equal(
        pd.DataFrame(scan.over_files(scan.measure, files, 2, "")), pd.DataFrame(alone)
    )


# ---- integrity


def test_a_worker_that_dies_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "IN_PROCESS", 0)

    def die(name: str) -> dict[str, object]:
        import os
        import signal

        if name == "130":
            os.kill(os.getpid(), signal.SIGKILL)
        return {"name": name}

    with pytest.raises(UserError, match=r"worker process died .* runtime\.workers"):
        scan.over_files(die, [(str(number),) for number in range(200)], 2, "")


def test_unreadable_files_are_counted_by_reason(clean: Path, tmp_path: Path) -> None:
    root = copy_of(clean, tmp_path)
    for i in range(8):
        file = root / f"train/fake/{i:03d}.png"
        file.write_bytes(file.read_bytes()[: 300 if i else 0])
    result = audited(root)
    found = result.finding("unreadable")
    assert (found.severity, found.answer, found.n) == ("error", "yes", 800)
    assert found.data["reasons"] == {"truncated": 7, "empty file": 1}
    assert "4.0% of train fake" in found.message
    assert (
        len(result.tables["unreadable"]) == 8
        and (tmp_path / "run_data/artifacts/unreadable.parquet").is_file()
    )
    for i in range(1, 8):
        texture(i + 5000).save(root / f"train/fake/{i:03d}.png")
    assert audited(root).finding("unreadable").severity == "warning"  # one file is listed, not alarming


# ---- balance


def test_names_that_are_no_text_are_audited(clean: Path, tmp_path: Path) -> None:
    root = copy_of(clean, tmp_path)
    folder = os.fsencode(root / "train" / "real")
    try:
        shutil.copy(next((root / "train" / "real").glob("*.png")), folder + b"/copy\xff.png")
        Path(os.fsdecode(folder + b"/broken\xfe.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes text only")
    result = audited(root, tmp_path / "run")
    assert result.frame.loc[result.frame["reason"] != "", "path"].tolist() == ["train/real/broken\\xfe.png"]
    assert (result.frame["file"] == os.fsdecode(folder + b"/copy\xff.png")).any()
    assert audited(root, tmp_path / "run").evidence.numbers == result.evidence.numbers


def test_imbalance(tmp_path: Path) -> None:
    rare = audited(make(tmp_path / "rare", each=80, val=10, fakes=0.1)).finding("imbalance")
    assert (rare.answer, rare.severity) == ("yes", "warning")
    assert rare.value == pytest.approx(8 / 88) and "1 to 10.0" in rare.message
    assert audited(make(tmp_path / "half", each=40, val=5, fakes=0.5)).finding("imbalance").answer == "no"


def test_sources_of_val_that_train_lacks(tmp_path: Path) -> None:
    root = make(tmp_path / "data", each=4)
    (root / "val/fake").rename(root / "val/moved")
    (root / "val/newgen").mkdir()
    (root / "val/moved").rename(root / "val/newgen/fake")
    found = audited(root).finding("sources")
    assert found.answer == "yes" and found.data["new"] == [["fake", "newgen"]] and found.value == 0.5


# ---- duplicates


def test_planted_leaks_are_found_however_they_were_saved(clean: Path, tmp_path: Path) -> None:
    """The five leaks that other tools were tried on: an equal file, other pixels, other labels, a crop."""
    root = copy_of(clean, tmp_path)
    originals = [Image.open(root / f"train/real/{i:03d}.png").convert("RGB") for i in range(6)]
    big = [image.resize((256, 256), Image.Resampling.BICUBIC) for image in originals]
    for i, image in enumerate(big):
        image.save(root / f"train/real/{i:03d}.png")
    (root / "val/real/equal.png").write_bytes((root / "train/real/000.png").read_bytes())
    big[1].save(root / "val/real/pixels.bmp")
    big[2].save(root / "val/fake/conflict.jpg", quality=60)
    big[2].save(root / "val/fake/conflict_exact.png")
    big[3].resize((180, 180)).save(root / "val/real/scaled.png")
    big[4].transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "val/real/mirrored.png")
    big[5].crop((16, 16, 240, 240)).save(root / "val/real/centre.png")
    result = audited(root)
    leaks = result.tables["leakage"].set_index("val_path")
    assert bool(leaks.loc["val/fake/conflict_exact.png", "conflict"])
    leaks = leaks.drop("val/fake/conflict_exact.png")
    assert leaks["train_path"].to_dict() == {
        f"val/{name}": f"train/real/00{i}.png"
        for i, name in enumerate(
            (
                "real/equal.png",
                "real/pixels.bmp",
                "fake/conflict.jpg",
                "real/scaled.png",
                "real/mirrored.png",
                "real/centre.png",
            )
        )
    }
    assert leaks["kind"].tolist() == [leaks.loc[path, "kind"] for path in leaks.index]
    assert (
        leaks.loc["val/real/equal.png", "kind"] == "file"
        and leaks.loc["val/real/pixels.bmp", "kind"] == "pixels"
    )
    assert (
        leaks.loc["val/real/mirrored.png", "kind"] == "mirrored"
        and leaks.loc["val/real/centre.png", "kind"] == "centre"
    )
    assert leaks["conflict"].sum() == 1 and bool(leaks.loc["val/fake/conflict.jpg", "conflict"])
    found = result.finding("leakage")
    assert (found.answer, found.severity) == ("yes", "error") and found.value == pytest.approx(7 / 407)
    assert found.data["n_leaked"] == 7 and found.data["n_exact"] == 3 and found.data["n_conflict"] == 2
    conflict = result.finding("label_conflict")
    assert conflict.answer == "yes" and "val/fake/conflict.jpg" in conflict.data["paths"]


def test_one_leak_among_many_is_told_but_not_claimed(clean: Path, tmp_path: Path) -> None:
    root = copy_of(clean, tmp_path)
    (root / "val/real/000.png").write_bytes((root / "train/real/000.png").read_bytes())
    found = audited(root).finding("leakage")
    assert (found.answer, found.severity, found.data["n_leaked"]) == ("no", "note", 1)


def test_reconstructions_are_pairs_not_label_errors(tmp_path: Path) -> None:
    root = make(tmp_path / "data", each=40)
    for file in sorted((root / "train/real").iterdir()):
        soft = Image.open(file).resize((SIDE // 2, SIDE // 2), Image.Resampling.BILINEAR)
        soft.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(root / "train/fake" / file.name)
    found = audited(root).finding("label_conflict")
    assert found.answer == "no" and "reconstructions" in found.message


def test_thousands_of_equal_and_blank_pictures_are_no_problem(tmp_path: Path) -> None:
    root = make(tmp_path / "data", each=5)
    blank, same = Image.new("RGB", (SIDE, SIDE), (9, 9, 9)), texture(1)
    for i in range(150):
        blank.save(root / f"train/real/blank{i}.png")
        blank.save(root / f"val/fake/blank{i}.png")
        same.save(root / f"train/real/same{i}.png")
        same.save(root / f"val/real/same{i}.png")
    result = audited(root)
    leaks = result.tables["leakage"]
    assert len(leaks) == 150 and not leaks["val_path"].str.contains("blank").any()
    assert len(result.tables["pairs"]) < 2000
    assert result.finding("duplicates").answer == "yes"
    oddities = result.finding("oddities")
    assert oddities.severity == "error" and oddities.data["counts"]["constant"] == 300


# ---- shortcuts


@pytest.mark.parametrize(
    ("save", "property_"),
    [
        (lambda im, path, label: (as_jpeg(90) if label else as_png)(im, path, label), "codec"),
        (lambda im, path, label: as_jpeg(75 if label else 95)(im, path, label), "jpeg_quality"),
        (
            lambda im, path, label: im.save(path.with_suffix(".jpg"), quality=90, subsampling=2 * label),
            "subsampling",
        ),
        (lambda im, path, label: as_png(im.crop((0, 0, SIDE - 4 * label, SIDE)), path, label), "width"),
    ],
)
def test_how_files_were_made_gives_the_label_away(tmp_path: Path, save: Save, property_: str) -> None:
    result = audited(make(tmp_path / "data", each=40, save=save))
    joint, single = result.finding("shortcut.joint"), result.finding(f"shortcut.{property_}")
    assert joint.answer == single.answer == "yes" and joint.severity == single.severity == "error"
    assert joint.ci is not None and joint.ci[0] > 0.9 and single.value == pytest.approx(1.0)


def test_a_weak_shortcut_and_a_header_that_no_network_sees(tmp_path: Path) -> None:
    def save(image: Image.Image, path: Path, label: int) -> None:
        number = int(path.name)
        small = number % 4 == 0 or (label and number % 4 < 3)  # 25% of the real, 75% of the fake
        image = image.resize((SIDE // 2, SIDE)) if small else image
        options = {"exif": _exif()} if label else {}
        image.save(path.with_suffix(".png"), **options)

    result = audited(make(tmp_path / "data", each=80, save=save))
    width = result.finding("shortcut.width")
    assert width.answer == "yes" and width.value == pytest.approx(0.75, abs=0.03)
    exif = result.finding("shortcut.exif")
    assert exif.answer == "yes" and exif.severity == "note"
    assert result.finding("shortcut.joint").value == pytest.approx(0.75, abs=0.05)  # the header is not in it


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0131] = "editor 1.0"
    return exif


def test_a_jpeg_past_in_png_files_is_a_shortcut(tmp_path: Path) -> None:
    def save(image: Image.Image, path: Path, label: int) -> None:
        image = texture(int(path.name) + 1000 * label + 5000 * len(path.parts[-3]), 160)
        if not label:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=75)
            image = Image.open(buffer)
        image.save(path.with_suffix(".png"))

    result = audited(make(tmp_path / "data", each=35, save=save))
    found = result.finding("shortcut.jpeg_history")
    assert found.answer == "yes" and found.value is not None and found.value > 0.8
    assert result.finding("shortcut.joint").answer == "yes"


def test_content_is_reported_apart_and_accuses_nobody(tmp_path: Path) -> None:
    def save(image: Image.Image, path: Path, label: int) -> None:
        as_png(Image.eval(image, lambda v: int(v * 0.5)) if label else image, path, label)

    result = audited(make(tmp_path / "data", each=60, save=save))
    assert result.finding("shortcut.joint").answer == "no"
    content = result.finding("content")
    assert (content.answer, content.severity) == ("yes", "note")
    assert "shortcut.brightness" not in raised(result)


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
def test_noise_gives_no_label_away_at_any_imbalance(share: float) -> None:
    claimed = 0
    for seed in range(12):
        rng = np.random.default_rng([seed, int(share * 100)])
        labels = rng.permutation((np.arange(800) < share * 800).astype(np.int64))
        folds = rng.permutation(800) % 5
        noise, category = rng.normal(size=800), rng.integers(0, 4, 800).astype(float)
        for scores in (
            shortcuts.held_out_odds(noise, labels, folds),
            shortcuts.held_out_odds(category, labels, folds, True),
            shortcuts.boosted_scores(np.column_stack([noise, category]), labels, folds),
        ):
            claimed += auc(labels, scores).ci[0] > shortcuts.SHORTCUT_AUC
    assert claimed == 0


def test_a_two_sided_difference_is_seen() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    values = np.where(labels == 1, 512.0, rng.choice([300.0, 700.0], 400))  # plain AUC of the value: 0.5
    scores = shortcuts.held_out_odds(values, labels, rng.permutation(400) % 5)
    assert auc(labels, scores).value > 0.99


def test_few_images_decide_nothing(tmp_path: Path) -> None:
    save: Save = lambda im, path, label: (as_jpeg(90) if label else as_png)(im, path, label)
    result = audited(make(tmp_path / "data", each=5, save=save))
    assert result.finding("shortcut.joint").answer == "undecided"
    assert result.finding("drift").answer == "undecided"


# ---- drift, normalisation, resize, oddities


def test_drift_between_the_splits_of_a_class(tmp_path: Path) -> None:
    def save(image: Image.Image, path: Path, label: int) -> None:
        darker = "val" in path.parts and label == 1
        as_png(Image.eval(image, lambda v: int(v * 0.6)) if darker else image, path, label)

    found = audited(make(tmp_path / "data", each=60, save=save)).finding("drift")
    assert found.answer == "yes" and found.severity == "warning"
    assert "fake brightness" in found.data["properties"]
    assert not any(name.startswith("real ") for name in found.data["properties"])


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ([123.7, 116.3, 103.5], [58.4, 57.1, 57.4], "0-255"),
        ([0.406, 0.456, 0.485], [0.225, 0.224, 0.229], "BGR"),
        ([0.5, 0.5, 0.5], [0.03, 0.03, 0.03], "spread far"),
        ([-1.5, -1.5, -1.5], [0.5, 0.5, 0.5], "far from zero"),
    ],
)
def test_wrong_normalisation(clean: Path, mean: list[float], std: list[float], words: str) -> None:
    result = audited(clean, **{"dataset.normalize_mean": mean, "dataset.normalize_std": std})
    found = result.finding("normalization")
    assert (found.answer, found.severity) == ("yes", "error") and words in found.message
    measured = result.tables["channels"]["measured mean"]
    assert found.data["settings"]["dataset"]["normalize_mean"] == pytest.approx(measured.tolist(), abs=1e-3)


@pytest.mark.parametrize("mean_std", [([0.5] * 3, [0.5] * 3), ([0.0] * 3, [1.0] * 3)])
def test_common_normalisations_pass(clean: Path, mean_std: tuple[list[float], list[float]]) -> None:
    keys = {"dataset.normalize_mean": mean_std[0], "dataset.normalize_std": mean_std[1]}
    assert audited(clean, **keys).finding("normalization").answer == "no"


def test_measured_channels_equal_the_pixels(clean: Path, clean_result: audit.AuditResult) -> None:
    pixels = np.stack([np.asarray(Image.open(f)) for f in sorted(clean.glob("train/*/*.png"))]) / 255
    table = clean_result.tables["channels"]
    assert table["measured mean"].to_numpy() == pytest.approx(pixels.mean(axis=(0, 1, 2)), abs=1e-9)
    assert table["measured std"].to_numpy() == pytest.approx(pixels.std(axis=(0, 1, 2)), abs=1e-9)


def test_a_destructive_resize_is_noted(tmp_path: Path) -> None:
    root = make(tmp_path / "data", each=4, save=lambda im, p, label: as_png(im.resize((128, 128)), p, label))
    found = audited(root).finding("resize")
    assert found.answer == "yes" and found.value is not None and found.value > 0.8
    assert found.data["settings"] == {"dataset": {"resize": "crop"}}
    assert audited(root, **{"dataset.resize": "crop"}).finding("resize").answer == "no"


def test_the_simulated_resize_destroys_what_lies_beyond_the_new_sampling_rate() -> None:
    _, x = np.mgrid[:256, :256]
    lost = {}
    for frequency in (0.27, 0.38, 0.45):
        wave = (128 + 100 * np.cos(2 * np.pi * frequency * x)).astype(np.uint8)
        found = spectrum.measure(wave, "resize", 205)  # 205 pixels hold up to 0.40 cycles per pixel
        assert found.fine_share > 0.99
        lost[frequency] = found.lost
        assert spectrum.measure(wave, "crop", 205).lost == spectrum.measure(wave, "resize", 256).lost == 0
    assert lost[0.27] < lost[0.38] < 0.99 < lost[0.45]


def test_the_spectral_slope_is_that_of_the_noise() -> None:
    rng = np.random.default_rng(0)
    fy, fx = np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256), indexing="ij")
    radius = np.maximum(np.hypot(fy, fx), 1 / 256)
    for exponent in (0.0, 1.0):  # of the amplitude; power falls twice as steeply
        noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(256, 256))) / radius**exponent).real
        gray = np.clip(128 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)
        assert spectrum.measure(gray, "crop", 256).slope == pytest.approx(-2 * exponent, abs=0.2)


def test_half_gray_pictures_and_a_whole_dark_class(tmp_path: Path) -> None:
    root = make(
        tmp_path / "data",
        each=20,
        save=lambda im, p, label: as_png(Image.eval(im, lambda v: v // 16) if label else im, p, label),
    )
    for i in range(3):
        pixels = np.asarray(Image.open(root / f"train/real/{i:03d}.png")).copy()
        pixels[20:] = 128
        Image.fromarray(pixels).save(root / f"train/real/{i:03d}.png")
    result = audited(root)
    table = result.tables["oddities"].set_index("oddity")
    assert table.loc["half_gray", "images"] == 3
    assert table.loc["dark", "fake"] > 0.9 and table.loc["dark", "real"] == 0
    assert result.finding("oddities").answer == "yes" and result.finding("oddities").severity == "error"
    assert set(result.tables["odd_images"]["path"]) >= {f"train/real/{i:03d}.png" for i in range(3)}


def test_suspected_labels_are_listed(tmp_path: Path) -> None:
    def save(image: Image.Image, path: Path, label: int) -> None:
        wrong = int(path.name) % 20 == 7
        as_png(Image.eval(image, lambda v: int(v * 0.4)) if label != wrong else image, path, label)

    suspects = audited(make(tmp_path / "data", each=60, save=save)).tables["suspects"]
    wrong = suspects["path"].str.extract(r"(\d+)\.png")[0].astype(int) % 20 == 7
    assert len(suspects) >= 10 and wrong.mean() > 0.8


# ---- small parts


@pytest.mark.parametrize("quality", [1, 10, 30, 50, 75, 85, 90, 95, 100])
def test_jpeg_quality_is_read_off_the_tables(quality: int) -> None:
    buffer = io.BytesIO()
    texture(1).save(buffer, "JPEG", quality=quality)
    assert jpeg.quality(decode_bytes(buffer.getvalue()).quantization) == quality


def test_a_jpeg_trace_needs_a_jpeg() -> None:
    for seed in range(5):
        image = texture(seed, 200)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        assert jpeg.trace(np.asarray(image)) < jpeg.TRACE_FOUND < jpeg.trace(np.asarray(Image.open(buffer)))


def test_share_interval_is_wilsons() -> None:
    assert share_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert share_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert share_interval(0, 0) == (0.0, 1.0)


def test_the_same_settings_give_the_same_numbers(
    clean: Path, clean_result: audit.AuditResult, tmp_path: Path
) -> None:
    again = audited(clean, tmp_path / "again")
    assert again.evidence.to_dict() == clean_result.evidence.to_dict()


def test_what_a_source_does_is_told_apart_from_its_class(tmp_path: Path) -> None:
    """Two generators: one saves at low quality, and drifts in brightness between train and val."""
    root = tmp_path / "data"
    number = 0
    for split in ("train", "val"):
        for label, source in ((0, "cam"), (1, "good"), (1, "bad")):
            folder = root / split / source / ("real", "fake")[label]
            folder.mkdir(parents=True)
            for i in range(70):
                number += 1
                image = texture(number)
                if source == "bad" and split == "val":
                    image = Image.eval(image, lambda v: int(v * 0.6))
                image.save(folder / f"{i}.jpg", quality=60 if source == "bad" else 92)
    result = audited(root)
    table = result.tables["shortcut_sources"]
    quality = table[table["property"] == "JPEG quality"].set_index("source")
    assert quality.loc["bad", "auc"] > 0.95 > 0.6 > quality.loc["good", "auc"]
    assert (quality.loc["bad", "typical"], quality.loc["good", "typical"]) == ("60", "92")
    drifting = result.finding("drift").data["properties"]
    assert "fake bad brightness" in drifting and not any("good" in name or "cam" in name for name in drifting)
    files = result.tables["files"].set_index(["split", "class"])
    assert (
        files.loc[("train", "fake"), "images"] == 140
        and files.loc[("val", "real"), "commonest size"] == "32 x 32"
    )


def test_new_files_displace_few_of_the_sample() -> None:
    def rows(n: int) -> pd.DataFrame:
        return pd.DataFrame(
            [
                (f"{s}/{y}/{i}", s, y)
                for s in ("train", "val")
                for y in (0, 1)
                for i in range(n if y else n // 8)
            ],
            columns=["path", "split", "label"],
        )

    before, after = rows(800), rows(808)
    first, second = (set(f["path"][scan.in_sample(f, 7, 1000)]) for f in (before, after))
    assert 900 < len(first) <= 1000 and len(first - second) <= 20
    drawn = before[scan.in_sample(before, 7, 1000)].groupby(["split", "label"]).size()
    assert drawn["train", 0] == 100 and drawn["train", 1] == 400  # all of the rare, the rest from the common


def test_quantisation_tables_tell_encoders_of_one_quality_apart() -> None:
    standard = Image.new("RGB", (16, 16))
    buffer = io.BytesIO()
    standard.save(buffer, "JPEG", quality=80)
    tables = decode_bytes(buffer.getvalue()).quantization
    assert tables is not None
    other = {0: [*tables[0][:-1], tables[0][-1] + 1], 1: tables[1]}
    assert jpeg.quality(tables) == jpeg.quality(other)
    assert jpeg.tables_id(tables) != jpeg.tables_id(other) and jpeg.tables_id(None) == ""


def _see_nothing() -> None:
    """What a worker without the file system of the others answers."""
    from diag_lib.audit import cluster

    cluster._sees = lambda root: False


def test_a_cluster_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="NOT TESTED: dask is not installed")
    from diag_lib.audit import cluster

    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    root = make(tmp_path / "data", each=2)
    for address in ("tcp://127.0.0.1:9", "no address"):
        with pytest.raises(UserError, match=r"^runtime\.dask: no scheduler answers at .*dask scheduler"):
            audited(root, **{"runtime.dask": address})


@pytest.mark.slow
def test_a_dask_cluster_of_two_workers_gives_what_one_thread_gives(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="NOT TESTED: dask is not installed")
    root = make(tmp_path / "data", each=40)
    (root / "train/real/000.png").write_bytes(b"")
    alone = audited(root, tmp_path / "alone")
    options = {"processes": True, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(n_workers=2, **options) as cluster, distributed.Client(cluster) as client:
        spread = audited(root, tmp_path / "spread", **{"runtime.dask": cluster.scheduler_address})
        tasks = client.run(lambda dask_worker: dask_worker.state.executed_count)
        client.run(_see_nothing)
        with pytest.raises(UserError, match=r"runtime\.dask: worker .* does not see .*data"):
            audited(root, tmp_path / "blind", **{"runtime.dask": cluster.scheduler_address})
    assert len(tasks) == 2 and sum(tasks.values()) >= 160 // scan.CHUNK
    pd.testing.assert_frame_equal(spread.frame, alone.frame)
    pd.testing.assert_frame_equal(spread.sample, alone.sample)
    assert spread.evidence.to_dict() == alone.evidence.to_dict()


@pytest.mark.slow
def test_a_leak_stops_a_pipeline_and_the_report_shows_it(tmp_path: Path) -> None:
    """The gate for somebody's CI: `diag run --steps 01 --fail-on error`, with the real notebook."""
    from diag_lib import cli

    root = make(tmp_path / "data", each=35)
    for i in range(3):
        shutil.copy(root / f"train/real/{i:03d}.png", root / f"val/real/leak{i}.png")
    keys = [f"dataset.root={root}", f"dataset.image_size={SIDE}", "runtime.device=cpu"]
    sets = [part for key in keys for part in ("--set", key)]
    out = tmp_path / "run"
    command = ["run", "base", *sets, "--steps", "01", "--out", str(out), "--fail-on", "error"]
    assert cli.main(command) == 1
    page = (out / "01_audit.html").read_text(encoding="utf-8")
    assert "leaked: 3" in page and "val/real/leak2.png" in page


def test_the_join_is_exact_on_smooth_pictures_and_compares_few_of_them() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (300, 5, 5), dtype=np.uint8)
    small = [np.asarray(Image.fromarray(c).resize((17, 16), Image.Resampling.BICUBIC)) for c in coarse]
    noisy = [np.clip(s.astype(int) + rng.integers(-6, 7, s.shape), 0, 255).astype(np.uint8) for s in small]
    hashes = hashing.difference_hash(np.stack([*small, *noisy]))
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=2)
    i, j, _, skipped = hashing.near_pairs(hashes)
    assert set(zip(i, j, strict=True)) == set(zip(*np.nonzero(np.triu(distance <= 15, 1)), strict=True))
    assert len(i) > 20 and skipped == 0
    alike = [(np.unique(band, return_counts=True)[1] ** 2).sum() for band in hashes[:300].T]
    assert max(alike) < 4 * 300  # bands of whole rows: many times as many
