"""The fault lab's own networks: each is broken in the way that it says, seen through the steps' findings."""

import pytest
import torch
from steps_data import SIZE, tiny_settings, write_images, write_teacher

from diag_lib import baseline, teacher
from diag_lib.causes import CAUSES
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.models import build
from diag_lib.screens import Case, RuledOut, Suspicion

FACTORIES = "diag_lib.faults.factories:"
BY_ID = {cause.id: cause for cause in CAUSES}
TEACHERS = {
    "teacher_train_mode": ("teacher.train_mode", "yes"),
    "teacher_stale_cache": ("teacher.repeatable", "no"),
    "teacher_mirrored": ("teacher.train_mode", "no"),
}


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("networks")
    write_images(tmp / "data", train=24, val=60)
    write_teacher(tmp / "teacher.safetensors")
    return tmp


@pytest.fixture(autouse=True)
def untrusted(monkeypatch):
    monkeypatch.delenv("DIAG_TRUST_CODE", raising=False)


def test_the_labs_own_networks_need_no_trust_and_others_do() -> None:
    model, _ = build(f"{FACTORIES}student_detached", None)
    assert model(torch.zeros(1, 3, SIZE, SIZE)).shape[1] == 1
    with pytest.raises(UserError, match="--trust-code"):
        build("diag_lib.cli:main", None)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_broken_teacher_is_recognised_and_its_look_alike_is_not(name, tmp) -> None:
    own = {"teacher__arch": f"{FACTORIES}{name}", "teacher__weights": None, "teacher__preprocess": "raw"}
    found = teacher.run(tiny_settings(tmp, **own), RunFolder(tmp / name).create(), progress=False)
    finding_id, answer = TEACHERS[name]
    assert found.evidence.finding(finding_id).answer == answer
    case = Case(found.settings, {"teacher": found.evidence}, {})
    for cause in ("teacher_train_mode", "teacher_stale_cache"):
        expected = Suspicion if cause == name else RuledOut | None
        assert isinstance(BY_ID[cause].screen(case), expected), cause


@pytest.mark.parametrize(("name", "cut"), [("student_detached", True), ("student_still_batchnorm", False)])
def test_a_student_cut_off_from_the_loss_is_recognised(name, cut, tmp) -> None:
    own = {"student__arch": f"{FACTORIES}{name}", "student__preprocess": "raw", "training__epochs_s2": 1}
    settings = tiny_settings(tmp, **own)
    found = baseline.run(settings, RunFolder(tmp / name).create(), progress=False)
    gradients = found.finding("gradients")
    assert gradients.answer == ("no" if cut else "yes")
    if cut:
        assert "conv1.weight" in " ".join(gradients.data["unreached"])
        assert "fc.weight" not in " ".join(gradients.data["unreached"])
    opinion = BY_ID["detached_graph"].screen(Case(settings, {"baseline": found.evidence}, {}))
    assert isinstance(opinion, Suspicion if cut else RuledOut)
