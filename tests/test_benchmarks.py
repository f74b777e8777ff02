"""Do the benchmarks run, and do they write the numbers that their README promises?"""

import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from benchmarks import __main__ as command
from benchmarks import audit, audit_peers, audit_planted, experiments, growth, peer, recorder, scale
from benchmarks.timing import Report, Times

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
        growth_images=(4, 8),
        growth_arms=(1, 2),
        growth_pixels=24,
        peer=False,
    ),
    audit: audit.Size(
        images=48, pixels=40, parts=1, repetitions=1, grown=(40, 120), grown_pixels=40, peers=(), seeds=0
    ),
    recorder: recorder.Size(images=4, pixels=24, steps=4, repetitions=1),
    scale: scale.Size(grown=(16, 40), pixels=40),
}
PROMISED = {
    experiments: ("step_ratio", "teacher_ratio", "speedup_cold", "speedup_warm"),
    audit: ("ratio_to_decode", "incremental_ratio"),
    recorder: ("recorder_ratio",),
    scale: ("audit_to_decode", "teacher_to_decode"),
}


@pytest.mark.slow
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
    peers = {*experiments.PEER_MEANINGS, *audit.PEER_RATIOS}
    for key in {*PROMISED[module], *module.MEANINGS} - peers:
        for number in (key, f"{key}_cpu"):
            assert math.isfinite(found[number]) and found[number] > 0, number
            low, high = found["spread"][number]
            assert low <= found[number] <= high
        assert key in printed
    assert found["size"] == "small"
    assert found["conditions"]["pixels"] == TINY[module].pixels
    assert torch.get_num_threads() == threads  # the rest of the process keeps its own
    assert str(tmp_path) not in json.dumps(found)
    if module is experiments:
        memory = found["memory"]
        assert 50 < memory["imports_mib"] < min(memory["plain_mib"], memory["ours_mib"])
        assert {name for name, curve in found["growth"].items() if isinstance(curve, dict)} == {
            "images_cold", "images_warm", "arms_warm",
        }  # fmt: skip
        assert all(seconds > 0 for seconds in found["growth"]["arms_warm"]["seconds"])
        assert "target: at least 8" in printed and "peak memory" in printed
        with Image.open(tmp_path / "experiments.png") as picture:
            assert min(picture.size) > 400


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
def test_a_peer_of_the_audit_that_cannot_be_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_peers, "CACHE", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    report = Report("audit", "small")
    assert audit_peers.ready(("cleanvision",), report) == {}
    assert report.conditions["cleanvision"].startswith("not measured: ")


def test_a_curve_knows_its_line() -> None:
    found = growth.curve((1, 2, 4), [(1.5, 1.0), (2.5, 2.0), (4.5, 4.0)])
    assert (found["fixed"], found["per_unit"], found["r2"]) == pytest.approx((0.5, 1.0, 1.0))
    assert found["seconds"] == [1.5, 2.5, 4.5] and found["cpu_seconds"] == [1.0, 2.0, 4.0]


def test_a_peer_that_cannot_be_installed_is_skipped_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    (tmp_path / "file").write_text("no folder")
    report = Report("experiments", "small")
    found = peer.Peer(tmp_path, report)
    found.compare(("status_quo",), [Times(1, 1)], [Times(1, 1)])
    assert "cannot be installed" in report.further["torchdistill"]["skipped"] and not report.ratios
    assert capsys.readouterr().err.count("\n") == 1


def test_a_peers_arms_count_as_often_as_they_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "environment", lambda: Path("python"))
    report = Report("experiments", "small")
    found = peer.Peer(tmp_path, report)
    found.times = {"with_teacher": Times(10, 8), "bce_only": Times(1, 1)}
    found.compare(("status_quo", "bce_only", "centered"), [Times(3, 2)], [Times(0.5, 0.5)])
    assert report.ratios["torchdistill_over_ours_cold"] == pytest.approx(7)
    assert report.ratios["torchdistill_over_ours_cold_cpu"] == pytest.approx(8.5)
    assert report.ratios["torchdistill_over_ours_warm"] == pytest.approx(42)
