"""Do the benchmarks run, and do they write the numbers that their README promises?"""

import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import audit, audit_peers, audit_planted, experiments
from benchmarks.timing import Report

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
    audit: audit.Size(
        images=48, pixels=40, parts=1, repetitions=1, grown=(40, 120), grown_pixels=40, peers=(), seeds=0
    ),
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
    without_peers = set(module.MEANINGS) - set(getattr(module, "PEER_RATIOS", ()))
    for key in {*PROMISED[module], *without_peers}:
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


@pytest.mark.slow
def test_planted_problems_are_scored_against_what_was_planted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("leak: mirrored", "tiny", "shortcut: JPEG / PNG", "control: PNG")
    chosen = tuple(problem for problem in audit_planted.PROBLEMS if problem.name in names)
    monkeypatch.setattr(audit_planted, "PROBLEMS", chosen)
    monkeypatch.setattr(audit_planted, "SIDE", 64)
    rows = {row["problem"]: row["ours"] for row in audit_planted.measure(tmp_path / "planted", 1, {})}
    assert rows["leak: mirrored"] == rows["tiny"] == {"recall": 1.0, "precision": 1.0}
    assert rows["shortcut: JPEG / PNG"] == {"claimed": 1.0} and rows["control: PNG"] == {"claimed": 0.0}
    assert not (tmp_path / "planted").exists()


def test_a_peers_answer_is_read_as_it_was_meant() -> None:
    problems = {problem.name: problem for problem in audit_planted.PROBLEMS}
    assert len(problems) >= 36
    said = {
        "issues": {"dark": ["train/real/a"]},
        "sets": [["train/real/a", "val/real/b"], ["val/real/c", "val/real/d"]],
    }
    assert audit_planted.found_by_peer(problems["leak: equal file"], said) == {"val/real/b"}
    assert audit_planted.found_by_peer(problems["nearly black"], said) == {"train/real/a"}
    assert audit_planted.found_by_peer(problems["both labels: equal file"], said) == set()
    whole = [f"{split}/fake/{i}" for split, n in (("train", 60), ("val", 40)) for i in range(n)]
    dark = audit_planted.found_by_peer(
        problems["all fakes nearly black"], {"issues": {"dark": whole}, "sets": []}
    )
    assert dark == {"dark"}


@pytest.mark.slow
def test_a_peer_that_cannot_be_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_peers, "CACHE", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    report = Report("audit", "small")
    assert audit_peers.ready(("cleanvision",), report) == {}
    assert report.conditions["cleanvision"].startswith("not measured: ")
