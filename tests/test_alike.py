"""Derived datasets in which how a file was saved no longer tells its class."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from diag_lib.images.alike import read_encoding, write_alike


def make(
    root: Path, real: dict[str, object], fake: dict[str, object], sizes: tuple[int, int] = (64, 64)
) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for split in ("train", "val"):
        for label, (name, how) in enumerate((("real", real), ("fake", fake))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 256, (sizes[label], sizes[label], 3), dtype=np.uint8)
                file = folder / f"{i}.{'jpg' if how else 'png'}"
                Image.fromarray(pixels).save(file, **how)
                rows.append((f"{split}/{name}/{file.name}", str(file), label, split))
    return pd.DataFrame(rows, columns=["path", "file", "label", "split"])


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_lossless_class_gets_the_tables_of_the_other_which_stays_untouched(tmp_path: Path) -> None:
    frame = make(tmp_path / "set", {"quality": 75, "subsampling": "4:2:0"}, {})
    before = contents(tmp_path / "set")
    alike = write_alike(frame, tmp_path / "out", seed=1)
    assert alike is not None and "fake images saved as JPEG" in alike.what
    assert contents(tmp_path / "set") == before
    seen = set()
    for path, original in alike.origin.itertuples(index=False):
        encoding = read_encoding(tmp_path / "out" / path)
        seen.add(
            (encoding.format, encoding.subsampling, tuple(encoding.tables[0]) if encoding.tables else None)
        )
        if "/real/" in path:
            assert (tmp_path / "out" / path).read_bytes() == before[original]
    assert len(seen) == 1


def test_the_higher_quality_is_brought_to_the_lower_one(tmp_path: Path) -> None:
    frame = make(tmp_path / "set", {"quality": 95}, {"quality": 60})
    alike = write_alike(frame, tmp_path / "out", seed=1)
    assert alike is not None and alike.what.startswith("the real images saved as JPEG")
    assert len({read_encoding(tmp_path / "out" / p).coarseness for p in alike.origin["path"]}) == 1


def test_classes_of_different_size_are_cropped_to_a_common_one(tmp_path: Path) -> None:
    frame = make(tmp_path / "set", {}, {}, sizes=(64, 48))
    alike = write_alike(frame, tmp_path / "out", seed=1)
    assert alike is not None and "cropped" in alike.what
    assert {read_encoding(tmp_path / "out" / p).size for p in alike.origin["path"]} == {(48, 48)}


@pytest.mark.parametrize("how", [{}, {"quality": 90}])
def test_nothing_is_written_when_the_classes_are_saved_alike(tmp_path: Path, how: dict[str, object]) -> None:
    frame = make(tmp_path / "set", how, how)
    assert write_alike(frame, tmp_path / "out", seed=1) is None
    assert not (tmp_path / "out").exists()


def test_the_same_seed_gives_the_same_bytes_and_the_limit_holds_per_class(tmp_path: Path) -> None:
    frame = make(tmp_path / "set", {"quality": 75}, {})
    first = write_alike(frame, tmp_path / "a", seed=3, limit=4)
    second = write_alike(frame, tmp_path / "b", seed=3, limit=4)
    assert first is not None and second is not None
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(first.origin) == 16


def enlarge_all(frame: pd.DataFrame, label: int, side: int) -> None:
    for file in frame.loc[frame["label"] == label, "file"]:
        Image.open(file).resize((side, side), Image.Resampling.BICUBIC).save(file)


def test_the_smaller_class_can_be_enlarged_before_both_are_cropped(tmp_path: Path) -> None:
    """Enlarged to 64 pixels, of which the middle 48 are shown, noise is smoother than before."""
    frame = make(tmp_path / "set", {}, {}, sizes=(64, 48))
    alike = write_alike(frame, tmp_path / "out", seed=1, enlarge=True)
    assert alike is not None
    assert "the fake images enlarged to the sizes of the real ones" in alike.what and "48 x 48" in alike.what

    def roughness(origin: pd.DataFrame, name: str) -> float:
        rows = origin[origin["original"].str.contains(f"/{name}/")]
        shown = [np.asarray(Image.open(tmp_path / "out" / path), float) for path in rows["path"]]
        assert {image.shape for image in shown} == {(48, 48, 3)}
        return float(np.mean([np.abs(np.diff(image, axis=1)).mean() for image in shown]))

    assert roughness(alike.origin, "fake") < 0.8 * roughness(alike.origin, "real")
    again = write_alike(frame, tmp_path / "again", seed=1, enlarge=True)
    assert again is not None and contents(tmp_path / "out") == contents(tmp_path / "again")


@pytest.mark.parametrize(
    ("sizes", "enlarged", "looks"),
    [
        ((64, 48), None, False),  # larger, with pixels of their own
        ((64, 64), 0, True),
        ((64, 64), 1, True),
    ],
)
def test_larger_images_are_told_from_enlarged_ones(
    tmp_path: Path, sizes: tuple[int, int], enlarged: int | None, looks: bool
) -> None:
    frame = make(tmp_path / "set", {}, {}, sizes=sizes)
    if enlarged is not None:
        enlarge_all(frame, enlarged, 96)
    alike = write_alike(frame, tmp_path / "out", seed=1)
    assert alike is not None and alike.enlarged is looks


def test_classes_of_one_size_have_no_class_to_enlarge(tmp_path: Path) -> None:
    frame = make(tmp_path / "set", {"quality": 80}, {})
    alike = write_alike(frame, tmp_path / "out", seed=1, enlarge=True)
    assert alike is not None and not alike.enlarged and "enlarged" not in alike.what
