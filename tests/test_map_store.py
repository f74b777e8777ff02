"""Which patch maps are already computed, and can each of them still be trusted?"""

import multiprocessing
import os
import signal
import time
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


def test_maps_that_changed_places_are_missing(tmp_path):
    MapStore(tmp_path, DESCRIPTION).append([key(0), key(1), key(2)], maps(3))
    file = tmp_path / "maps.f16"
    first, second, third = np.split(np.frombuffer(file.read_bytes(), np.uint8), 3)
    file.write_bytes(np.concatenate([second, first, third]).tobytes())
    kinds, _ = MapStore(tmp_path, DESCRIPTION).lookup([key(0), key(1), key(2)])
    assert [kind != MISSING for kind in kinds] == [False, False, True]


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


def _write_for_ever(folder: str) -> None:
    store, number = MapStore(Path(folder), DESCRIPTION), 0
    while True:
        keys = [key(number + k) for k in range(50)]
        store.append(keys, np.concatenate([maps(1, seed=number + k) for k in range(50)]))
        number += 50


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_killed_while_it_writes_leaves_only_true_maps(tmp_path):
    context = multiprocessing.get_context("spawn")
    writer = context.Process(target=_write_for_ever, args=(str(tmp_path),))
    writer.start()
    index, seen = tmp_path / "index", 0
    for growth in range(3):
        while not index.exists() or index.stat().st_size <= seen:
            assert writer.is_alive()
            time.sleep(0.001)
        seen = index.stat().st_size
        if growth < 2:
            continue
        os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    store = MapStore(tmp_path, DESCRIPTION)
    kinds, rows = store.lookup([key(n) for n in range(5000)])
    there = np.flatnonzero(kinds != MISSING)
    assert len(there) >= 50 and (there == np.arange(len(there))).all()
    expected = np.stack([round_map(maps(1, seed=int(n))[0]) for n in there])
    np.testing.assert_array_equal(store.read(kinds[there], rows[there]), expected)
    new = len(there)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.append([key(new)], maps(1, seed=new))  # the lock died with its holder
    np.testing.assert_array_equal(stored(tmp_path, new + 1)[new], round_map(maps(1, seed=new)[0]))
