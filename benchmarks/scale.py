"""How do time and memory grow up to 200,000 images, in the audit and in the teacher pass?

Each size and work is done in a process of its own, so that a peak of memory belongs to it alone. Both are compared with
their floor on the same files: reading and decoding every image once with Pillow.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.memory import peak
from benchmarks.pictures import write_dataset
from benchmarks.timing import Report, Times
from diag_lib import audit
from diag_lib.evidence import RunFolder
from diag_lib.images import open_split
from diag_lib.settings import Settings, load
from diag_lib.teacher_cache import teacher_maps

WORKS = ("decode", "audit", "teacher")


@dataclass(frozen=True)
class Size:
    """The numbers of images, the largest last, and their side."""

    grown: tuple[int, ...]
    pixels: int = 64

    @property
    def images(self) -> int:
        """Of the largest set."""
        return self.grown[-1]


SIZES: dict[str, Size] = {
    "small": Size((500, 2000)),
    "full": Size((2_000, 20_000, 200_000)),
}

MEANINGS: dict[str, str] = {
    "audit_to_decode": "whole first audit / only decoding every file (Pillow, RGB), at the largest size",
    "teacher_to_decode": "whole first teacher pass (Tiny-LaDeDa, view 0) / the same",
}


def run(size: Size, threads: int, report: Report) -> None:
    """Measure every size; the rows go into the report as `scale`."""
    report.conditions |= asdict(size) | {"images": size.images, "format": "JPEG, quality 90"}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        train = size.images * 3 // 4
        data = write_dataset(root / "data", train, size.images - train, size.pixels)
        files = sorted(data.rglob("*.jpg"), key=lambda file: (file.name, str(file)))  # all cells grow alike
        rows = [_work(root, work, files[:n], size.pixels, threads) for n in size.grown for work in WORKS]
    report.further["scale"] = rows
    at = {row["work"]: Times(row["wall"], row["cpu"]) for row in rows if row["images"] == size.images}
    for work in WORKS[1:]:
        report.add(f"{work}_to_decode", [(at[work], at["decode"])])


def further_lines(found: dict[str, Any]) -> list[str]:
    """A line a row: seconds, milliseconds an image, and memory above that of the imports."""
    return [
        f"  {row['work']:8}{row['images']:>8,} images {row['wall']:9.1f} s, {row['cpu']:9.1f} s CPU, "
        f"{1000 * row['cpu'] / row['images']:6.2f} ms an image, peak {row['peak_mb']:,} MB "
        f"({row['imports_mb']:,} after imports), {row['disk_mb']:,.0f} MB written"
        for row in found["scale"]
    ]


def _work(root: Path, work: str, files: list[Path], pixels: int, threads: int) -> dict[str, Any]:
    """One work on the first files, in a process and folders of its own."""
    home = root / f"{work}-{len(files)}"
    home.mkdir()
    with (home / "images.csv").open("w", newline="", encoding="utf-8") as stream:
        rows = ((file, file.parent.name, file.parent.parent.name) for file in files)
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    overrides = {
        "dataset.root": str(home / "images.csv"),
        "dataset.image_size": pixels,
        "dataset.augment": "none",
        "teacher.arch": "tiny_ladeda",
        "teacher.weights": None,
        "teacher.preprocess": "right_diag",
        "runtime.workers": threads,
        "runtime.device": "cpu",
        "runtime.threads": threads,
        "runtime.cache_dir": str(home / "cache"),
    }
    (home / "settings.yaml").write_text(load("base", overrides).to_yaml(), encoding="utf-8")
    folder = Path(__file__).resolve().parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "benchmarks.scale", work, str(home / "settings.yaml"), str(home / "run")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    written = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
    return {"work": work, **json.loads(done.stdout.splitlines()[-1]), "disk_mb": round(written / 2**20, 1)}


def main(work: str, settings: str, run: str) -> None:
    """Do one work here; its figures as a line of JSON."""
    chosen, folder = load(settings), RunFolder(Path(run))
    imports = peak()
    started, wall = _processor_time(), time.perf_counter()
    if work == "decode":
        count = _decode(chosen)
    elif work == "audit":
        count = len(audit.run(chosen, folder.root, progress=False).frame)
    else:
        count = _ask(chosen, folder.create())
    found = {
        "images": count,
        "wall": round(time.perf_counter() - wall, 4),
        "cpu": round(_processor_time() - started, 4),
        "peak_mb": round(peak()),
        "imports_mb": round(imports),
    }
    print(json.dumps(found))


def _processor_time() -> float:
    """Seconds, of this process and of those that it has waited for (these in the system's ticks of 10 ms)."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _decode(settings: Settings) -> int:
    with settings.dataset.folder.open(newline="", encoding="utf-8") as stream:
        files = [row["path"] for row in csv.DictReader(stream)]
    for file in files:
        with Image.open(file) as image:
            np.asarray(image.convert("RGB"))
    return len(files)


def _ask(settings: Settings, folder: RunFolder) -> int:
    """Image logits of both splits, from an empty cache."""
    count = 0
    for split in ("train", "val"):
        images = open_split(settings, split, folder)
        count += len(teacher_maps(settings, images, folder, progress=False).image_logits())
    return count


if __name__ == "__main__":
    main(*sys.argv[1:])
