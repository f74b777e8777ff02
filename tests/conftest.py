"""What holds for every test: examples may take their time, are the same every time, and trust leaks nowhere."""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def no_trust(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`--trust-code` lasts as long as its process: for a test that is itself."""
    monkeypatch.setenv("DIAG_TRUST_CODE", "")
    monkeypatch.delenv("DIAG_TRUST_CODE")
    yield


@pytest.fixture(scope="session")
def wheel_content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked: what a `pip install` puts beside other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"
