"""What does the audit cost beside decoding and beside its peers, how does it grow, and what does it find?"""

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks import audit_growth, audit_peers, audit_planted
from benchmarks.audit_growth import settings_for
from benchmarks.pictures import write_dataset
from benchmarks.timing import Report, Times, alternate
from diag_lib import audit
from diag_lib.audit.scan import Fitting, scan_images
from diag_lib.devices import thread_count
from diag_lib.images import read_table
from diag_lib.settings import Settings


@dataclass(frozen=True)
class Size:
    """How much is measured; `grown` are the sizes of the growth (images), whose side is `grown_pixels`."""

    images: int
    pixels: int
    parts: int  # pieces in which scanning and decoding take turns
    repetitions: int
    grown: tuple[int, ...]
    grown_pixels: int
    peers: tuple[str, ...] = audit_peers.NAMES
    seeds: int = 3  # of each planted problem; 0: none is planted


SIZES: dict[str, Size] = {
    "small": Size(
        images=2000, pixels=128, parts=8, repetitions=1, grown=(500, 2000), grown_pixels=128, seeds=1
    ),
    "full": Size(
        images=5000, pixels=256, parts=8, repetitions=1, grown=(2000, 10_000, 50_000), grown_pixels=256
    ),
}

MEANINGS: dict[str, str] = {
    "ratio_to_decode": "core pass over an image / only decoding it (Pillow, RGB)",
    "incremental_ratio": "whole second audit after 1% new files / whole first audit, at the largest size",
    "ratio_cleanvision": "CleanVision, its defaults / whole audit, the same images",
    "ratio_imagededup": "imagededup, PHash duplicates / whole audit, the same images",
}
PEER_RATIOS = tuple(f"ratio_{name}" for name in audit_peers.NAMES)
"""Left out of the report where a peer's environment cannot be made (no package registry)."""


def run(size: Size, threads: int, report: Report) -> None:
    """Measure everything; the numbers go into the report."""
    report.conditions |= asdict(size) | {"format": "JPEG, quality 90", "workers": threads}
    with thread_count(threads), tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        train = size.images * 3 // 4
        data = write_dataset(root / "data", train, size.images - train, size.pixels)
        settings = settings_for(data, threads)
        warm = write_dataset(root / "warm", 24, 24, size.pixels)
        audit.run(settings.with_overrides({"dataset.root": str(warm)}), root / "warm-run", progress=False)
        _scan_against_decoding(settings, root, size, threads, report)
        peers = audit_peers.ready(size.peers, report)
        for name in peers:
            _against(name, peers[name], settings, root, size, report)
        audit_growth.measure(root, size.grown, size.grown_pixels, warm, threads, report)
        if size.seeds:
            report.further["planted"] = audit_planted.measure(root / "planted", size.seeds, peers)


def further_lines(found: dict) -> list[str]:
    """What is no ratio: the growth, and the planted problems."""
    told = [
        f"  {row['images']:>6} images{' again' if row.get('second') else '':6} {row['cpu']:8.1f} s CPU, "
        f"peak {row['peak_mb']} MB"
        for row in found["growth"]
    ]
    return [*told, audit_planted.text(found["planted"])] if "planted" in found else told


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
        caches = root / f"core-{number}.parquet", root / f"deep-{number}.parquet"
        pairs += alternate(
            lambda part=part, caches=caches: _scan(part, caches, threads),
            lambda part=part: decode_all(part["file"].tolist()),
            size.repetitions,
        )
    report.add("ratio_to_decode", pairs)
    each = len(rows) / size.parts
    report.seconds["scan_image"] = float(np.median([ours.wall for ours, _ in pairs])) / each
    report.seconds["decode_image"] = float(np.median([bare.wall for _, bare in pairs])) / each


def _scan(rows: pd.DataFrame, caches: tuple[Path, Path], threads: int) -> None:
    for cache in caches:
        cache.unlink(missing_ok=True)
    fitting, none = Fitting("resize", 256), np.zeros(len(rows), dtype=bool)
    scan_images(rows, none, caches, fitting, workers=threads, progress=False)


def _against(name: str, python: Path, settings: Settings, root: Path, size: Size, report: Report) -> None:
    """The peer's whole work in its own process, and the whole audit in this one, in turns."""
    pairs = []
    for number in range(size.repetitions):
        (found,) = audit_peers.ask(name, python, [Path(settings.dataset.root)], root / f"{name}-{number}")
        started = os.times()
        audit.run(settings, root / f"run-{name}-{number}", progress=False)
        ended = os.times()
        cpu = sum(ended[:4]) - sum(started[:4])
        pairs.append((Times(found["wall"], found["cpu"]), Times(ended.elapsed - started.elapsed, cpu)))
    report.add(f"ratio_{name}", pairs)
    report.ratios[f"cpu_ratio_{name}"] = report.ratios[f"ratio_{name}_cpu"]
    report.seconds |= {f"{name}_cpu": pairs[-1][0].cpu, "whole_audit_cpu": pairs[-1][1].cpu}
