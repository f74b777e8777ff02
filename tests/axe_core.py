"""Where is axe-core, the accessibility checker that the browser tests run on every page?

It is a development tool (MPL-2.0) and no part of this repository: `make axe` puts the pinned version into `.cache/`.
"""

import base64
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

VERSION = "4.14.1"
SHA512 = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
FILE = Path(__file__).resolve().parents[1] / ".cache" / f"axe-core-{VERSION}.min.js"


def source() -> str:
    """The script; without it the test is skipped, or fails where `DIAG_REQUIRE_AXE=1`."""
    if not FILE.is_file():
        text = f"THE PAGES WERE NOT CHECKED BY AXE-CORE: {FILE.name} is missing, `make axe` fetches it"
        (pytest.fail if os.environ.get("DIAG_REQUIRE_AXE") == "1" else pytest.skip)(text)
    return FILE.read_text(encoding="utf-8")


def fetch() -> None:
    """Fetch the pinned version by npm unless it is here; exits with a line when that fails or is another."""
    if FILE.is_file():
        return
    npm = shutil.which("npm")
    if npm is None:
        sys.exit(
            "axe-core comes by npm, which is not installed: install Node.js, or do without (its tests are skipped)"
        )
    with tempfile.TemporaryDirectory() as place:
        command = [npm, "pack", f"axe-core@{VERSION}", "--silent", "--pack-destination", place]
        if subprocess.run(command, cwd=place, timeout=120, stdout=subprocess.DEVNULL).returncode != 0:
            sys.exit("npm could not fetch axe-core; its tests are skipped")
        packed = (Path(place) / f"axe-core-{VERSION}.tgz").read_bytes()
    if base64.b64encode(hashlib.sha512(packed).digest()).decode() != SHA512:
        sys.exit(f"axe-core {VERSION}: its SHA-512 is not the pinned one; nothing was kept")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        script = archive.extractfile("package/axe.min.js")
        FILE.parent.mkdir(exist_ok=True)
        partial = FILE.with_suffix(".part")
        partial.write_bytes(script.read() if script else b"")
        partial.replace(FILE)


if __name__ == "__main__":
    fetch()
