"""Which processor, precision, memory layout and number of threads does a run use?"""

from collections.abc import Callable

import pytest
import torch

from diag_lib import devices
from diag_lib.models import build
from diag_lib.settings import load


def taking(*seconds: float) -> Callable[[], float]:
    left = list(seconds)
    return lambda: left.pop(0)


def failing() -> float:
    raise RuntimeError("no such kernel")


def test_the_fastest_way_wins_by_its_best_of_three_turns():
    chosen, seconds = devices.fastest({"usual": taking(3, 3, 3), "other": taking(9, 1, 9)}, "usual")
    assert chosen == "other" and seconds == {"usual": 3, "other": 1}


def test_the_usual_way_stays_when_it_is_nearly_as_fast():
    chosen, _ = devices.fastest({"usual": taking(1.05, 2, 2), "other": taking(1, 1, 1)}, "usual")
    assert chosen == "usual"


def test_a_way_that_does_not_work_here_is_left_out():
    assert devices.fastest({"usual": taking(2, 2, 2), "other": failing}, "usual") == ("usual", {"usual": 2})
    assert devices.fastest({"usual": failing, "other": taking(5, 5, 5)}, "usual")[0] == "other"
    assert devices.fastest({"usual": failing}, "usual") == ("usual", {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_real_step_is_timed_in_each_layout_and_precision(dtype):
    steps = []

    def student() -> torch.nn.Module:
        model = build("tiny_ladeda", None, "right_diag")[0]
        model.register_forward_hook(
            lambda module, inputs, output: steps.append((inputs[0].stride(), output.dtype))
        )
        return model

    for layout in (True, False):
        way = devices.Hardware(torch.device("cpu"), dtype, 1, channels_last=layout)
        timer = devices.step_timer(student, way, 4, 24)
        assert timer() > 0 and len(steps) == 2  # one to warm up, one on the clock
        assert timer() > 0 and len(steps) == 3
        assert {strides[1] == 1 for strides, _ in steps} == {layout} and {kind for _, kind in steps} == {
            dtype
        }
        steps.clear()


def test_a_gpu_is_measured_once_and_takes_what_was_fastest(monkeypatch):
    """The measurement itself, with a clock that favours bf16 in contiguous memory; compiling does not pay here."""
    asked = []

    def timer(student, way, batch, size):
        asked.append((way.dtype, way.channels_last, way.compiled, batch, size))
        fast = way.dtype == torch.bfloat16 and not way.channels_last
        return lambda: 0.5 if way.compiled else 1.0 if fast else 2.0

    monkeypatch.setattr(devices, "step_timer", timer)
    devices._measured.cache_clear()
    dtypes = (torch.float32, torch.bfloat16)
    for _ in range(2):
        way, seconds = devices._measured("tiny_ladeda", "right_diag", (8, 64), "cpu", dtypes, 1000)
    assert (way.dtype, way.channels_last, way.compiled) == (torch.bfloat16, False, False)
    assert len(asked) == len(seconds) == 4
    way, seconds = devices._measured("tiny_ladeda", "right_diag", (8, 64), "cpu", dtypes, 10**6)
    assert way.compiled and len(seconds) == 5
    devices._measured.cache_clear()


def test_on_a_cpu_nothing_is_left_to_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "step_timer", lambda *_: pytest.fail("measured"))
    settings = load("base", {"runtime.device": "cpu", "dataset.root": str(tmp_path)})
    found = devices.choose(settings).describe()
    assert (found["device"], found["precision"]) == ("cpu", "float32")
    assert found["kernels"] == {
        "stem_folded": True, "channels_last": True, "compiled": False, "chosen_by": "rule", "seconds": {},
    }  # fmt: skip


def test_one_thread_for_small_batches_and_for_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "_DEFAULT_THREADS", 7)

    def threads(**changes: object) -> int:
        chosen = {"runtime.device": "cpu", "dataset.root": str(tmp_path), **changes}
        return devices.choose(load("base", chosen)).threads

    assert threads(**{"dataset.image_size": 64}) == 1
    assert threads() == 7
    assert threads(**{"runtime.processes": 2}) == 1
    assert threads(**{"runtime.threads": 3, "dataset.image_size": 64}) == 3
