"""How much memory does each way need at its worst? Each runs in a process of its own.

`python -m benchmarks.memory plain|ours|nothing SETTINGS RUN ARM ...` prints the peak of its resident memory.
"""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

from diag_lib.settings import Settings

MEBIBYTE = 1024 * 1024


def peak_memory(settings: Settings, root: Path, arms: tuple[str, ...]) -> dict[str, float] | None:
    """Peak resident memory in MiB: all imported, one plain run with a teacher, all arms of ours from a cold cache.

    One epoch shows the peak. None where the system does not tell.
    """
    if sys.platform == "win32":
        return None
    cache = {
        "runtime.cache_dir": str(root / "memory-cache"),
        "training.epochs_s1": 0,
        "training.epochs_s2": 1,
    }
    file = root / "memory.yaml"
    file.write_text(settings.with_overrides(cache).to_yaml(), encoding="utf-8")
    with_teacher = next(arm for arm in arms if arm != "bce_only")
    found = {"imports": [], "plain": [with_teacher], "ours": list(arms)}
    return {f"{way}_mib": _measure(way, file, root / "memory-run", of) for way, of in found.items()}


def _measure(way: str, settings: Path, run: Path, arms: list[str]) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", way, str(settings), str(run), *arms]
    here = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main(way: str, settings: str, run: str, *arms: str) -> float:
    """Do it here; the peak in MiB."""
    from benchmarks.plain import train_plain
    from diag_lib.devices import thread_count
    from diag_lib.evidence import RunFolder
    from diag_lib.settings import load
    from diag_lib.training import arm_settings, train_arms

    chosen = load(settings)
    threads = chosen.runtime.threads
    with thread_count(threads if isinstance(threads, int) else 1):
        if way == "plain":
            for arm in arms:
                train_plain(arm_settings(chosen, arm))
        elif way == "ours":
            train_arms(chosen, RunFolder(run), arms, progress=False)
    return peak()


def peak() -> float:
    """This process's peak of resident memory in MiB, not that of the one which started it."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MEBIBYTE if sys.platform == "darwin" else 1024)  # bytes there, KiB elsewhere


if __name__ == "__main__":
    print(json.dumps(round(main(*sys.argv[1:]), 1)))
