"""imagededup's PHash duplicates (its default distance) on folders of images; run by its own interpreter."""

import json
import os
import sys
import time
from pathlib import Path


def look(root: str) -> dict:
    from imagededup.methods import PHash

    found: dict = {"issues": {}, "sets": [], "failed": ""}
    started, wall = os.times(), time.perf_counter()
    try:
        pairs = PHash(verbose=False).find_duplicates(image_dir=root, recursive=True)
    except Exception as error:
        pairs, found["failed"] = {}, f"{type(error).__name__}: {error}"[:200]
    ended = os.times()
    found |= {"cpu": sum(ended[:4]) - sum(started[:4]), "wall": time.perf_counter() - wall}
    for path, others in pairs.items():
        found["sets"] += [[Path(path).as_posix(), Path(other).as_posix()] for other in others]
    return found


if __name__ == "__main__":
    roots = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([look(root) for root in roots]))
