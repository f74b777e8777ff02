"""CleanVision with its defaults on folders of images; run by its own interpreter, imports nothing of ours."""

import json
import os
import sys
import time
from pathlib import Path


def relative(path: object, root: str) -> str:
    return Path(os.path.relpath(str(path), root)).as_posix()


def look(root: str) -> dict:
    from cleanvision import Imagelab

    found: dict = {"issues": {}, "sets": [], "failed": ""}
    started, wall = os.times(), time.perf_counter()
    try:
        lab = Imagelab(data_path=root)
        lab.find_issues()
    except Exception as error:  # it stops at the first file that cannot be decoded
        found["failed"] = f"{type(error).__name__}: {error}"[:200]
        lab = None
    ended = os.times()
    found |= {"cpu": sum(ended[:4]) - sum(started[:4]), "wall": time.perf_counter() - wall}
    if lab is not None:
        for column in lab.issues.columns:
            if column.startswith("is_") and column.endswith("_issue"):
                paths = lab.issues.index[lab.issues[column].astype(bool)]
                found["issues"][column[3:-6]] = [relative(path, root) for path in paths]
        for kind in ("exact_duplicates", "near_duplicates"):
            for group in lab.info.get(kind, {}).get("sets", []):
                found["sets"].append([relative(path, root) for path in group])
    return found


if __name__ == "__main__":
    roots = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([look(root) for root in roots]))
