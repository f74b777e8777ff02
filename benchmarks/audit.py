"""What does measuring every image cost beside decoding it, and what does a second audit cost?"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.pictures import CLASSES, write_dataset, write_pictures
from benchmarks.timing import Report, Times, alternate, timed
from diag_lib import audit
from diag_lib.audit.scan import scan_all
from diag_lib.devices import thread_count
from diag_lib.evidence import RunFolder
from diag_lib.images import read_table
from diag_lib.settings import Settings, load


@dataclass(frozen=True)
class Size:
    """Images altogether, their side in pixels, and repetitions of each measurement."""

    images: int
    pixels: int
    parts: int  # pieces in which scanning and decoding take turns
    repetitions: int


SIZES: dict[str, Size] = {
    "small": Size(images=2000, pixels=128, parts=8, repetitions=2),
    "full": Size(images=4000, pixels=256, parts=8, repetitions=2),
}

MEANINGS: dict[str, str] = {
    "ratio_to_decode": "core scan of an image / only decoding it (Pillow, RGB)",
    "incremental_ratio": "whole second audit after 1% new files / whole first audit",
    "incremental_scan_ratio": "core scan of the second audit alone / of the first",
}


def run(size: Size, threads: int, report: Report) -> None:
    """Measure everything; the numbers go into the report."""
    report.conditions |= asdict(size) | {"format": "JPEG, quality 90", "workers": threads}
    with thread_count(threads), tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        train = size.images * 3 // 4
        data = write_dataset(root / "data", train, size.images - train, size.pixels)
        settings = load(
            "base",
            {
                "dataset.root": str(data),
                "dataset.image_size": size.pixels,
                "runtime.workers": threads,
                "runtime.device": "cpu",
            },
        )
        small = write_dataset(root / "first", 24, 24, size.pixels)
        audit.run(settings.with_overrides({"dataset.root": str(small)}), root / "run-first", progress=False)
        _scan_against_decoding(settings, root, size, threads, report)
        _second_audit(settings, root, size, threads, report)


def decode_all(files: list[str]) -> None:
    """Nothing but the pixels of every file."""
    for file in files:
        with Image.open(file) as image:
            np.asarray(image.convert("RGB"))


def _scan_against_decoding(settings: Settings, root: Path, size: Size, threads: int, report: Report) -> None:
    rows = read_table(settings).frame
    decode_all(rows["file"].tolist())  # the files are in the system's cache for both
    pairs = []
    for number in range(size.parts):
        part = rows.iloc[number :: size.parts].reset_index(drop=True)
        cache = root / f"scan-{number}.parquet"
        pairs += alternate(
            lambda part=part, cache=cache: _scan(part, cache, threads),
            lambda part=part: decode_all(part["file"].tolist()),
            size.repetitions,
        )
    report.add("ratio_to_decode", pairs)
    each = len(rows) / size.parts
    report.seconds["scan_image"] = float(np.median([ours.wall for ours, _ in pairs])) / each
    report.seconds["decode_image"] = float(np.median([bare.wall for _, bare in pairs])) / each


def _scan(rows: pd.DataFrame, cache: Path, threads: int) -> None:
    cache.unlink(missing_ok=True)
    scan_all(rows, cache, workers=threads, progress=False)


def _second_audit(settings: Settings, root: Path, size: Size, threads: int, report: Report) -> None:
    """1% more files are added before every second audit; the first one of the next round sees them too."""
    whole: list[tuple[Times, Times]] = []
    scans: list[tuple[Times, Times]] = []
    for number in range(size.repetitions):
        run, cache = RunFolder(root / f"run-{number}"), root / f"rescan-{number}.parquet"

        def both(run: RunFolder = run, cache: Path = cache) -> tuple[Times, Times]:
            rows = read_table(settings).frame
            return (
                timed(lambda: audit.run(settings, run, progress=False)),
                timed(lambda: scan_all(rows, cache, workers=threads, progress=False)),
            )

        first = both()
        _add_files(Path(settings.dataset.root), max(2, size.images // 100), size.pixels, number)
        second = both()
        whole.append((second[0], first[0]))
        scans.append((second[1], first[1]))
    report.add("incremental_ratio", whole)
    report.add("incremental_scan_ratio", scans)
    report.seconds["first_audit"] = float(np.median([first.wall for _, first in whole]))
    report.seconds["second_audit"] = float(np.median([second.wall for second, _ in whole]))


def _add_files(data: Path, count: int, pixels: int, number: int) -> None:
    for label, name in enumerate(CLASSES):
        names = [f"new-{number}-{k:06d}" for k in range(count // 2)]
        write_pictures(data / "train" / name, names, pixels, bool(label), 1000 + 2 * number + label, "jpg")
