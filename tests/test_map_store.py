"""Which patch maps are already computed, and can each of them still be trusted?"""

import multiprocessing
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diag_lib.map_store import MISSING, MapStore, needs_single, round_map

SHAPE = (3, 4)
DESCRIPTION = {"shape": list(SHAPE), "weights": "abc"}


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def maps(n: int, seed: int = 0, spread: float = 5.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (n, *SHAPE)).astype(np.float32)


def stored(folder: Path, n: int) -> np.ndarray:
    kinds, rows = (store := MapStore(folder, DESCRIPTION)).lookup([key(i) for i in range(n)])
    assert (kinds != MISSING).all()
    return store.read(kinds, rows)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(hnp.arrays(np.float32, (2, *SHAPE), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)))
def test_maps_come_back_as_rounded_in_another_process_of_the_store(tmp_path, values):
    folder = tmp_path / str(abs(hash(values.tobytes())))
    MapStore(folder, DESCRIPTION).append([key(0), key(1)], values)
    expected = np.stack([round_map(v) for v in values])
    np.testing.assert_array_equal(stored(folder, 2), expected)


def test_extreme_maps_are_kept_in_single_precision():
    extreme = maps(1)[0]
    extreme[0, 0] = -100_000.0
    assert round_map(extreme)[0, 0] == -100_000.0 and needs_single(extreme)
    assert float(np.finfo(np.float16).max) < 100_000  # fp16 would have made -inf of it
    assert not needs_single(np.full(SHAPE, 1024.0, np.float32))


def test_rounding_twice_changes_nothing():
    once = round_map(maps(1)[0])
    np.testing.assert_array_equal(round_map(once), once)


def test_a_map_without_its_record_does_not_count(tmp_path):
    MapStore(tmp_path, DESCRIPTION).append([key(0)], maps(1))
    with (tmp_path / "maps.f16").open("ab") as file:  # killed between the map and its record
        file.write(b"half a map")
    with (tmp_path / "index").open("ab") as file:  # killed while the record was written
        file.write(b"torn")
    store = MapStore(tmp_path, DESCRIPTION)
    assert store.lookup([key(1)])[0][0] == MISSING
    store.append([key(1)], maps(1, seed=1))
    np.testing.assert_array_equal(stored(tmp_path, 2)[1], round_map(maps(1, seed=1)[0]))


def test_a_damaged_map_is_missing_and_can_be_replaced(tmp_path):
    MapStore(tmp_path, DESCRIPTION).append([key(0), key(1)], maps(2))
    content = bytearray((tmp_path / "maps.f16").read_bytes())
    content[0] ^= 1
    (tmp_path / "maps.f16").write_bytes(content)
    store = MapStore(tmp_path, DESCRIPTION)
    kinds, _ = store.lookup([key(0), key(1)])
    assert kinds[0] == MISSING and kinds[1] != MISSING
    store.append([key(0)], maps(1))
    np.testing.assert_array_equal(stored(tmp_path, 2), [round_map(m) for m in maps(2)])


@pytest.mark.parametrize("foreign", ["other", "noise", "short"])
def test_foreign_files_are_not_taken_for_maps(tmp_path, foreign):
    MapStore(tmp_path / "a", {**DESCRIPTION, "weights": "other"}).append([key(0)], maps(1))
    (tmp_path / "b").mkdir()
    for name in ("index", "maps.f16", "meta.json"):
        content = (tmp_path / "a" / name).read_bytes()
        if foreign == "noise":
            content = np.random.default_rng(0).bytes(len(content))
        (tmp_path / "b" / name).write_bytes(content[: 7 if foreign == "short" else None])
    store = MapStore(tmp_path / "b", DESCRIPTION)
    assert store.lookup([key(0)])[0][0] == MISSING
    store.append([key(0)], maps(1, seed=3))
    np.testing.assert_array_equal(stored(tmp_path / "b", 1)[0], round_map(maps(1, seed=3)[0]))


def test_an_unwritable_folder_is_said_once_and_maps_stay_in_memory(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match=r"cache cannot be written.*cache_dir"):
        store = MapStore(tmp_path / "file" / "cache", DESCRIPTION)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        places = store.append([key(0)], maps(1))
    np.testing.assert_array_equal(store.read(*places)[0], round_map(maps(1)[0]))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_and_maps_stay_in_memory(tmp_path):
    store = MapStore(tmp_path, DESCRIPTION)
    store.append([key(0)], maps(1))
    (tmp_path / "maps.f16").rename(tmp_path / "kept")
    (tmp_path / "maps.f16").symlink_to("/dev/full")
    with pytest.warns(UserWarning, match="No space left"):
        places = store.append([key(1)], maps(1, seed=1))
    np.testing.assert_array_equal(store.read(*places)[0], round_map(maps(1, seed=1)[0]))
    assert not store.writable


def _write_some(folder: str, first: int) -> None:
    store = MapStore(Path(folder), DESCRIPTION)
    for number in range(first, first + 20):
        store.append([key(number)], maps(1, seed=number, spread=2000.0 if number % 3 else 1.0))


def test_two_runs_can_write_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_some, args=(str(tmp_path), first)) for first in (0, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    expected = [round_map(maps(1, seed=n, spread=2000.0 if n % 3 else 1.0)[0]) for n in range(40)]
    np.testing.assert_array_equal(stored(tmp_path, 40), expected)
