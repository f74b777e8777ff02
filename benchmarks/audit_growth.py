"""How do time and memory of an audit grow, and what does a second one cost? Each in a process of its own."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.pictures import write_dataset
from benchmarks.timing import Report, Times
from diag_lib.settings import Settings, load


def settings_for(data: Path, threads: int) -> Settings:
    """Settings of the base preset for a dataset."""
    overrides: dict[str, Any] = {
        "dataset.root": str(data),
        "runtime.workers": threads,
        "runtime.device": "cpu",
    }
    return load("base", overrides)


def measure(
    root: Path, sizes: tuple[int, ...], pixels: int, warm: Path, threads: int, report: Report
) -> None:
    """First audits of the sizes, and at the largest one the second audit after 1% new files."""
    largest = max(sizes)
    data = write_dataset(root / "grown", largest * 3 // 4, largest - largest * 3 // 4, pixels, seed=7)
    files = sorted(data.rglob("*.jpg"))
    rows = [(str(file), file.parent.name, file.parent.parent.name) for file in files]
    order = sorted(range(len(rows)), key=lambda i: (rows[i][0][-10:], rows[i][0]))  # all cells grow alike
    grown = []
    for size in sizes:
        kept = [rows[i] for i in order[: size * 99 // 100 if size == largest else size]]
        grown.append(_audit(root, f"grown-{size}", kept, warm, threads))
    second = _audit(root, f"grown-{largest}", [rows[i] for i in order], warm, threads)
    report.further["growth"] = [*grown, {**second, "second": True}]
    first = grown[sizes.index(largest)]
    report.add("incremental_ratio", [(_times(second), _times(first))])


def _times(found: dict) -> Times:
    return Times(found["wall"], found["cpu"])


def _audit(root: Path, name: str, rows: list[tuple[str, str, str]], warm: Path, threads: int) -> dict:
    manifest = root / f"{name}.csv"
    with manifest.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    command = [sys.executable, "-m", "benchmarks.audit_growth", manifest, root / f"{name}-run", warm, threads]
    folder = Path(__file__).resolve().parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        list(map(str, command)), check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(manifest: str, run: str, warm: str, threads: str) -> None:
    """One audit after a warm-up; its figures as a line of JSON."""
    from benchmarks.memory import peak
    from diag_lib import audit

    audit.run(settings_for(Path(warm), int(threads)), Path(run).parent / "warm-run", progress=False)
    before = peak()
    started, wall = os.times(), time.perf_counter()
    result = audit.run(settings_for(Path(manifest), int(threads)), run, progress=False)
    ended = os.times()
    found = {
        "images": len(result.frame),
        "wall": round(time.perf_counter() - wall, 2),
        "cpu": round(sum(ended[:4]) - sum(started[:4]), 2),
        "peak_mb": round(peak()),
        "peak_mb_before": round(before),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
