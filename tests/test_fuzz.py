"""Do any bytes give a sound result or one clear line? Seeds, their mutations, and all that a fuzzer once found."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HERE = Path(__file__).resolve().parent / "fuzz"
sys.path.insert(0, str(HERE))

from targets import TARGETS, seeds  # noqa: E402

SEEDS = seeds()
NASTY = (
    b"", b"\0", b"nan", b"NaN", b"Infinity", b"-1e999", b"9" * 5_000, b"[" * 3_000, b"{\"a\":" * 500, b"\xff\xfe",
    b"\xef\xbb\xbf", b"null", b"true", b"\"", b"\r", b"\n\n", b",", b";", b"\t", b"../", b"/etc/passwd",
    b"!!python/object/apply:os.system [id]", b"&a [*a, *a]", b"<script>", b"\x1b[31m", "\u202e".encode(),
    b"\xed\xa0\x80", b"=cmd|x", b"1e5", b"0x1f", b"1_000", b"-0",
)  # fmt: skip


@pytest.mark.parametrize("name", list(TARGETS))
def test_seeds_and_earlier_findings(name: str) -> None:
    found = sorted((HERE / "found" / name).glob("*"))
    for data in [*SEEDS[name], *(file.read_bytes() for file in found)]:
        TARGETS[name](data)


Mutation = Callable[[bytes], bytes]


@st.composite
def mutated(draw: st.DrawFn, name: str) -> bytes:
    """A seed with pieces cut out, doubled, overwritten or swapped for something nasty."""
    data = draw(st.sampled_from(SEEDS[name]))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        piece = draw(
            st.sampled_from(NASTY) | st.binary(max_size=6) | st.just(data[start:end] * 2) | st.just(b"")
        )
        data = data[:start] + piece + data[end:]
    return data


@pytest.mark.parametrize("name", list(TARGETS))
def test_mutated_seeds(name: str) -> None:
    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(name))
    def check(data: bytes) -> None:
        TARGETS[name](data)

    check()
