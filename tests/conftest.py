"""What holds for every test: examples may take their time, are the same every time, and trust leaks nowhere."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def no_trust(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`--trust-code` lasts as long as its process: for a test that is itself."""
    monkeypatch.setenv("DIAG_TRUST_CODE", "")
    monkeypatch.delenv("DIAG_TRUST_CODE")
    yield
