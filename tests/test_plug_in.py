"""Does every example of docs/plug_in.md run as it stands, and does no code of the user's own run unasked?"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from steps_data import tiny_settings, write_images, write_teacher

from diag_lib import audit, causes, checks, cli, verdict
from diag_lib.errors import UserError
from diag_lib.evidence import FINDINGS, Finding, RunFolder
from diag_lib.images import read_table
from diag_lib.losses import named_loss
from diag_lib.settings import Settings, load
from diag_lib.training import train_arms
from diag_lib.workbook import fingerprint
from diag_lib.workbook.start import start
from diag_lib.workbook.state import RunState

PAGE = Path(__file__).parents[1] / "docs" / "plug_in.md"
BLOCKS = {
    name: text
    for text in re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for name in re.findall(r"^# ([\w.]+)", text)
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with every file of the page, images and a teacher; what the plug-ins add goes again."""
    for name, text in BLOCKS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = dict(FINDINGS), dict(checks.CHECKS), list(causes.CAUSES), set(sys.modules)
    yield tmp_path
    for table, kept in zip((FINDINGS, checks.CHECKS), before[:2], strict=True):
        table.clear()
        table.update(kept)
    causes.CAUSES[:] = before[2]
    for module in set(sys.modules) - before[3]:
        if module.startswith(("my_", "diag_plugin_")):
            del sys.modules[module]


def settings_of(folder: Path, name: str, **overrides) -> Settings:
    """The tiny settings with the page's YAML laid over them."""
    write_teacher(folder / "teacher.safetensors")
    given = load(folder / name).to_dict()
    patch = {}
    for key, section in yaml.safe_load(BLOCKS[name]).items():
        patch |= (
            {f"{key}.{k}": given[key][k] for k in section} if isinstance(section, dict) else {key: given[key]}
        )
    if "loss" in patch.pop("training.distillation", {}):
        patch["training.distillation.loss"] = given["training"]["distillation"]["loss"]
    return tiny_settings(folder, **overrides).with_overrides(patch)


def test_examples_are_short():
    python = {name: text for name, text in BLOCKS.items() if name.endswith(".py")}
    assert len(python) == 6
    for name, text in python.items():
        assert len([line for line in text.splitlines() if line.strip()]) < 20 + (name == "my_causes.py"), name


@pytest.mark.parametrize("name", ["teacher.yaml", "student.yaml"])
def test_networks_train(folder, monkeypatch, name):
    write_images(folder / "data", train=8, val=8)
    settings = settings_of(folder, name, training__epochs_s2=1)
    with pytest.raises(UserError, match="--trust-code"):
        train_arms(settings, RunFolder(folder / "run").create(), ["status_quo"], progress=False)
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    run = RunFolder(folder / "run").create()
    arm = train_arms(settings, run, ["status_quo"], progress=False)["status_quo"]
    assert len(arm.val_scores) == 16 and np.isfinite(arm.val_scores["score"]).all()
    if name == "student.yaml":
        assert any(key.startswith("head.") or ".head." in key for key in arm.model(settings).state_dict())


def test_dataset_becomes_a_manifest(folder):
    (folder / "pictures").mkdir()
    for number in range(40):
        for source, kind in (("sd21", "fake"), ("cam", "real")):
            picture = Image.new("RGB", (8, 8), (number, 0, 0))
            picture.save(folder / "pictures" / f"{source}_{number:05d}_{kind}.png")
    subprocess.run([sys.executable, "my_manifest.py"], check=True, cwd=folder)
    frame = read_table(load(folder / "dataset.yaml")).frame
    assert len(frame) == 80
    assert set(zip(frame["source"], frame["label"], strict=True)) == {("sd21", 1), ("cam", 0)}
    numbers = frame["path"].str.extract(r"_(\d+)_")[0]
    assert frame.groupby(numbers)["split"].nunique().eq(1).all()


def test_loss_trains_and_counts_as_code(folder, monkeypatch):
    write_images(folder / "data", train=8, val=8)
    settings = settings_of(folder, "loss.yaml", training__epochs_s2=1)
    with pytest.raises(UserError, match="--trust-code"):
        named_loss("my_losses:cosine")
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    student = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    cosine = named_loss("my_losses:cosine")
    assert float(cosine(student, 7 * student, 1.0)) == pytest.approx(0, abs=1e-6)
    assert float(cosine(student, -student, 1.0)) == pytest.approx(2, abs=1e-6)
    run = RunFolder(folder / "run").create()
    arms = train_arms(settings, run, ["status_quo", "bce_only"], progress=False)
    assert all(0 < value < 2 for value in arms["status_quo"].history["train_distill_loss"])
    before = fingerprint.inputs(settings)["user_code"]
    (folder / "my_losses.py").write_text(BLOCKS["my_losses.py"] + "\n# edited\n", encoding="utf-8")
    assert fingerprint.inputs(settings)["user_code"] != before
    keys = {arm: (run.arm_dir(arm) / "settings.json").stat().st_mtime_ns for arm in arms}
    train_arms(settings, run, list(arms), progress=False)
    again = {arm: (run.arm_dir(arm) / "settings.json").stat().st_mtime_ns for arm in arms}
    assert again["status_quo"] != keys["status_quo"]  # trained anew
    assert again["bce_only"] == keys["bce_only"]  # a student without distillation does not use it


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def f(s, t, k): return (s - t) ** 2", "scalar"),
        ("def f(s, t, k): return s.detach().mean()", "gradient"),
        ("def f(s, t, k): raise KeyError('mine')", "KeyError"),
        ("f = 1", "TypeError"),
        ("1 / 0", "ZeroDivisionError"),
        ("", "no 'f'"),
    ],
)
def test_wrong_loss_is_explained(folder, monkeypatch, source, words):
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    name = f"my_{abs(hash(source))}"
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        named_loss(f"{name}:f")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"training.distillation.loss": "mze"}, "did you mean 'mse'"),
        ({"training.distillation.loss": "a b:c"}, "package.module:function"),
        ({"plugins": "my_checks.py"}, "a list"),
        ({"plugins": ["my checks.txt"]}, "a .py file"),
    ],
)
def test_wrong_settings_are_explained(overrides, words):
    with pytest.raises(UserError, match=re.escape(words)):
        load("base", overrides)


def test_check_from_the_command_line(folder, capsys):
    """Refused without trust, then run in the notebook's kernel, kept, and run again when its source has changed."""
    write_images(folder / "data", train=6, val=6)
    text = f"dataset: {{root: data, image_size: 48}}\n{BLOCKS['check.yaml']}"
    (folder / "my.yaml").write_text(text, encoding="utf-8")
    command = ["run", str(folder / "my.yaml"), "--steps", "01", "--out", str(folder / "run")]
    assert cli.main(command) == 2
    assert "'my_checks.py' runs code of yours" in capsys.readouterr().err
    assert not (folder / "run").exists()

    assert cli.main([*command, "--trust-code"]) == 0
    path = folder / "run" / "evidence" / "audit.json"
    found = {item["id"]: item for item in json.loads(path.read_text(encoding="utf-8"))["findings"]}
    assert found["audit.enlarged"]["answer"] == "yes" and found["audit.enlarged"]["value"] == 1.0
    page = (folder / "run" / "01_audit.html").read_text(encoding="utf-8")
    assert "100% of the pictures have a side below 48 pixels" in page
    assert str(folder) not in page + (folder / "run" / "index.html").read_text(encoding="utf-8")
    written = path.stat().st_mtime_ns

    capsys.readouterr()
    assert cli.main([*command, "--trust-code"]) == 0
    assert "kept" in capsys.readouterr().err and path.stat().st_mtime_ns == written
    edited = BLOCKS["my_checks.py"].replace("share > 0.1", "share > 2")
    (folder / "my_checks.py").write_text(edited, encoding="utf-8")
    settings = load(folder / "my.yaml")
    run = RunFolder(folder / "run")
    notebook = Path(__file__).parents[1] / "notebooks" / "01_audit.ipynb"
    key = fingerprint.step_key("audit", notebook, fingerprint.inputs(settings), run)
    assert key != RunState.load(run).steps["audit"].key
    result = audit.run(settings, run, progress=False)  # this process has run the earlier source already
    assert result.finding("enlarged").answer == "no"


def test_evidence_of_plug_ins_is_read_without_them(folder, monkeypatch):
    write_images(folder / "data", train=6, val=6)
    settings = settings_of(folder, "check.yaml")
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    audit.run(settings, folder / "run", progress=False)
    code = (
        "import sys; from diag_lib.evidence import RunFolder;"
        "print(RunFolder(sys.argv[1]).read_evidence('audit').finding('audit.enlarged').answer)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(folder / "run")], check=True, capture_output=True, text=True
    )
    assert told.stdout.strip() == "no"


def test_notebooks_load_them_too(folder, monkeypatch):
    write_images(folder / "data", train=6, val=6)
    (folder / "my.yaml").write_text("dataset: {root: data}\nplugins: [my_checks.py]\n", encoding="utf-8")
    monkeypatch.chdir("/")
    settings, run = start("audit", folder / "my.yaml", folder / "run")
    assert settings.plugins == [str(folder / "my_checks.py")]
    with pytest.raises(UserError, match="--trust-code"):
        audit.run(settings, run, progress=False)
    assert not (folder / "run" / "evidence" / "audit.json").exists()


def test_cause_is_proven(folder, monkeypatch):
    """Seven steps teach nothing, a hundred do: the cause of the user's own is named, proven and repaired."""
    write_images(folder / "data", train=60, val=60)
    few = {
        "training__batch_size": 120,
        "training__epochs_s2": 6,
        "training__lr_s1": 1e-3,
        "training__lr_s2": 1e-3,
    }
    labels_alone = {"training__distillation__alpha_distill": 0.0, "training__distillation__alpha_task": 1.0}
    settings = settings_of(folder, "cause.yaml", **few, **labels_alone)
    with pytest.raises(UserError, match="--trust-code"):
        verdict.run(settings, folder / "run", progress=False)
    assert not (folder / "run").exists()
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    result = verdict.run(settings, folder / "run", progress=False)
    (named,) = result.causes
    assert (named.id, named.status, named.kind) == ("few_steps", "established", "gain")
    assert named.proof.after.auc.value > named.proof.before.auc.value
    assert load(folder / "run" / "recommended.yaml").training.batch_size == 8
    small = settings.with_overrides({"training.batch_size": 16})
    assert ("few_steps", "batches are small") in verdict.run(
        small, folder / "other", progress=False
    ).ruled_out


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("from diag_lib import checks\nchecks.register('audit.leakage', 'x')", "has a finding of that id"),
        ("from diag_lib import checks\nchecks.register('verdict.mine', 'x')", "<step>.<name>"),
        ("from diag_lib import causes\ncauses.register(causes.CAUSES[0])", "has a cause of that id"),
        (
            "from dataclasses import replace\nfrom diag_lib import causes\n"
            "causes.register(replace(causes.CAUSES[0], id='mine', experiment='nothing'))",
            "no experiment 'nothing'",
        ),
        ("1 / 0", "ZeroDivisionError"),
        ("import no_such_module", "no_such_module"),
        (None, "does not exist"),
    ],
)
def test_wrong_plugin_is_explained(folder, monkeypatch, source, words):
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    write_images(folder / "data", train=3, val=3)
    if source is not None:
        (folder / "mine.py").write_text(source, encoding="utf-8")
    settings = tiny_settings(folder, plugins=[str(folder / "mine.py")])
    with pytest.raises(UserError, match=re.escape(words)):
        audit.run(settings, folder / "run", progress=False)


@pytest.mark.parametrize(
    ("returned", "words"), [("1 / 0", "ZeroDivisionError"), ("3", "int"), ("FOREIGN", "audit.drift")]
)
def test_wrong_check_is_explained(folder, monkeypatch, returned, words):
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    write_images(folder / "data", train=3, val=3)
    foreign = repr(Finding("audit.drift", "ok", "no", "x"))
    (folder / "mine.py").write_text(
        "from diag_lib import checks\nfrom diag_lib.evidence import Finding\n"
        f"@checks.register('audit.mine', 'x')\ndef f(*given): return {returned.replace('FOREIGN', foreign)}\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError, match=rf"check audit\.mine .*{words}"):
        audit.run(tiny_settings(folder, plugins=[str(folder / "mine.py")]), folder / "run", progress=False)
