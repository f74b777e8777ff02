"""How are the audit's peers run: each in an environment of its own, made here once and kept in a cache folder?"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import Report

NAMES = ("cleanvision", "imagededup")
CACHE = Path(__file__).resolve().parent / ".cache"
SHARED = {"imagededup": True, "cleanvision": False}
"""imagededup needs torch, gigabytes that this interpreter has already: its environment may look here too."""


def ready(names: Sequence[str], report: Report) -> dict[str, Path]:
    """The peers' interpreters, installed now where they are not yet; one that cannot be is said and left out."""
    found = {}
    for name in names:
        try:
            found[name] = _environment(name)
            report.conditions[name] = _version(name, found[name])
        except (subprocess.CalledProcessError, OSError) as error:
            why = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
            report.conditions[name] = f"not measured: {''.join(why)}"
            print(f"  {name} could not be installed, so it is not compared with", flush=True)
    return found


def _environment(name: str) -> Path:
    folder = CACHE / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / "installed"
    if not stamp.is_file():
        venv.create(folder, with_pip=True, clear=True)
        if SHARED[name]:
            own = subprocess.run(
                [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                check=True, capture_output=True, text=True,
            ).stdout.strip()  # fmt: skip
            (Path(own) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", name]
        subprocess.run(command, check=True, capture_output=True, text=True)
        stamp.write_text(_version(name, python))
    return python


def _version(name: str, python: Path) -> str:
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def ask(name: str, python: Path, roots: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """What the peer says of each folder of images.

    For each a mapping: `issues` (name -> paths below the root), `sets` (lists of paths that it holds for copies),
    `failed` (an error's text or ""), `cpu` and `wall` seconds of its work, without starting and imports.
    """
    out.mkdir(parents=True, exist_ok=True)
    asked, answer = out / "roots.json", out / "answer.json"
    asked.write_text(json.dumps([str(root) for root in roots]))
    script = Path(__file__).with_name(f"audit_peer_{name}.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [python, script, asked, answer], check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(answer.read_text())
