"""Do the benchmarks run, and do they write the numbers that their README promises?"""

import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import audit, experiments

TINY = {
    experiments: experiments.Size(
        images=4,
        val=4,
        pixels=24,
        batch=4,
        repetitions=1,
        step_repetitions=1,
        tried=1,
        arms=("status_quo", "bce_only"),
        cold_every=2,
    ),
    audit: audit.Size(images=48, pixels=40, parts=1, repetitions=1),
}
PROMISED = {
    experiments: ("step_ratio", "teacher_ratio", "speedup_cold", "speedup_warm"),
    audit: ("ratio_to_decode", "incremental_ratio"),
}


@pytest.mark.parametrize("module", list(TINY), ids=lambda module: module.__name__)
def test_a_benchmark_writes_finite_positive_ratios_and_prints_them(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(module.SIZES, "small", TINY[module])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that what the command sets is undone afterwards
    name, threads = module.__name__.split(".")[-1], torch.get_num_threads()
    assert command.main([name, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    for key in {*PROMISED[module], *module.MEANINGS}:
        for number in (key, f"{key}_cpu"):
            assert math.isfinite(found[number]) and found[number] > 0, number
            low, high = found["spread"][number]
            assert low <= found[number] <= high
        assert key in printed
    assert found["size"] == "small"
    assert found["conditions"]["pixels"] == TINY[module].pixels
    assert torch.get_num_threads() == threads  # the rest of the process keeps its own
    assert str(tmp_path) not in json.dumps(found)


def test_every_number_is_explained() -> None:
    page = (Path(command.__file__).parent / "README.md").read_text(encoding="utf-8")
    for module in TINY:
        for key in module.MEANINGS:
            assert f"`{key}`" in page


def test_an_unknown_benchmark_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["speed", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "experiments" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
