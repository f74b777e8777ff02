"""`python -m benchmarks [NAME ...] [--size small|full]`: measure, print a table, write results/<name>.json."""

import argparse
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

NAMES = ("experiments", "audit", "recorder", "scale")
RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks (default: all). 0 when all of them were measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Ratios of speed, measured in one run."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} (default: all)")
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--threads", type=int, default=1, help="for both ways that are compared (default: 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON files")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}: choose from {', '.join(NAMES)}")
    if chosen.threads < 1:
        parser.error("--threads: at least 1")
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)  # before torch is imported
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name in chosen.names or NAMES:
        measure(name, chosen.size, chosen.threads, chosen.out)
    return 0


def measure(name: str, size: str, threads: int, out: Path) -> None:
    """One benchmark: its table on stdout, its JSON file in `out`."""
    from benchmarks.timing import Report, load, machine

    module = importlib.import_module(f"benchmarks.{name}")
    report = Report(name, size, conditions=machine(threads))
    gc.freeze()  # what is imported lives to the end: without it the collection before each timing walks over it again
    before, started = load(), time.perf_counter()
    try:
        module.run(module.SIZES[size], threads, report)
    finally:
        gc.unfreeze()
    report.conditions |= {
        "load_before": before,
        "load_after": load(),
        "took_seconds": round(time.perf_counter() - started, 1),
    }
    text = json.dumps(report.as_json(), indent=1, allow_nan=False)
    (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(table(module, report.as_json()), flush=True)
    if hasattr(module, "draw"):
        module.draw(report.as_json(), out / f"{name}.png")


def table(module: ModuleType, found: dict) -> str:
    """The ratios with their range over the repetitions, by the clock and by processor time."""
    conditions = found["conditions"]
    loads = " to ".join(
        "?" if v is None else f"{v:.1f}" for v in (conditions["load_before"], conditions["load_after"])
    )
    lines = [
        f"{found['benchmark']} ({found['size']}: {conditions['images']} images of {conditions['pixels']} px, "
        f"{conditions['threads']} thread(s) of {conditions['cores']} cores, load {loads})",
        f"  {'':24}{'clock':>8}  {'range':15}{'cpu':>8}",
    ]
    for key, meaning in module.MEANINGS.items():
        if key not in found:  # skipped, and said so where that was found out
            continue
        low, high = found["spread"][key]
        span = f"{low:.2f}..{high:.2f}"
        lines.append(f"  {key:24}{found[key]:8.2f}  {span:15}{found[key + '_cpu']:8.2f}  {meaning}")
    return "\n".join([*lines, *getattr(module, "further_lines", lambda _: [])(found)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
