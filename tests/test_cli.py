"""Does the command line do what was typed, and answer a mistake with one line that helps?"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps_data import tiny_settings, write_images, write_teacher

import diag_lib
from diag_lib import cli
from diag_lib.arguments import complete_config, load_settings, named_out, parse_steps
from diag_lib.errors import UserError
from diag_lib.evidence import STEPS
from diag_lib.settings import Settings, preset_names

COMMANDS = ("demo", "run", "finetune-teacher", "train", "faults", "compare", "export", "lab", "doctor")


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """The workbook's runner replaced by one that notes what it was asked, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIAG_TRUST_CODE", raising=False)
    calls = SimpleNamespace(settings=None, out=None, options={}, code=0, error=None)

    def run_workbook(settings: Settings, out: Path, **options: Any) -> int:
        calls.settings, calls.out, calls.options = settings, Path(out), options
        if calls.error:
            raise calls.error
        return int(calls.code)

    monkeypatch.setattr("diag_lib.workbook.run.run_workbook", run_workbook)
    return calls


def _settings_file(folder: Path, text: str = "dataset: {root: pictures}\n") -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


class TestMistakes:
    """One line `diag: ...` on stderr, exit code 2, never a traceback."""

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["rn"], "Did you mean 'run'"),
            (["run", "--otu", "x"], "did you mean --out"),
            (["run", "--out"], "'--out' requires an argument"),
            (["run", "base", "other"], "unexpected extra argument"),
            (["run", "base", "--fail-on", "everything"], "'warning', 'error'"),
            (["run"], "name a settings file or a preset"),
            (["run", "nowhere.yaml"], "no such settings file"),
            (["run", "base", "--preset", "safes"], "did you mean safest"),
            (["run", "base", "--steps", "07"], "no step '07'"),
            (["run", "base", "--steps", "techer"], "did you mean teacher"),
            (["run", "base", "--steps", ""], "no step ''"),
            (["run", "base", "--set", "training.sead=1"], "did you mean 'seed'"),
            (["run", "base", "--set", "training.seed"], "write it as key=value"),
            (["run", "base", "--set", "training.seed=[1"], "not readable as YAML"),
            (["run", "base", "--set", "training.seed=many"], "training.seed"),
            (["run", "--set", "dataset.rot=photos"], "did you mean 'root'"),
            (["train", "base"], "--arm"),
            (["train", "nowhere.yaml", "--arm", "bce_only"], "no such settings file"),
            (["finetune-teacher"], "CONFIG"),
            (["faults", "--seeds", "0"], "--seeds"),
            (["faults", "--suite", "huge"], "'quick', 'full'"),
            (["export", "reports/x"], "FILE"),
            (["doctor", "--zzz"], "--weights-dir"),
            (["--nonsense"], "no option --nonsense"),
        ],
    )
    def test_is_one_helpful_line(
        self, arguments: list[str], expected: str, runner: SimpleNamespace, capsys: pytest.CaptureFixture[str]
    ):
        assert cli.main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("diag: ")
        assert captured.err.count("\n") == 1
        assert expected in captured.err
        assert runner.settings is None

    def test_a_folder_in_place_of_settings_is_told_how_to_go_on(
        self, runner: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        (tmp_path / "photos").mkdir()
        assert cli.main(["run", "photos"]) == 2
        assert "diag run --set dataset.root=photos" in capsys.readouterr().err

    @pytest.mark.parametrize("command", [["run", "base"], ["train", "base", "--arm", "status_quo"]])
    def test_an_empty_out_is_not_the_current_folder(
        self,
        command: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ):
        monkeypatch.chdir(tmp_path)
        assert cli.main([*command, "--out", ""]) == 2
        assert "--out is empty" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_an_unknown_arm_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["train", "base", "--arm", "alpha_9"]) == 2
        assert "alpha_9" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_a_user_error_inside_a_run_is_one_line(
        self, runner: SimpleNamespace, capsys: pytest.CaptureFixture[str]
    ):
        runner.error = UserError("the folder\nis empty \x1b[31m red")
        assert cli.main(["run", "base"]) == 2
        assert capsys.readouterr().err == "diag: the folder is empty \\x1b[31m red\n"

    def test_a_full_disk_is_the_users_and_one_line(
        self, runner: SimpleNamespace, capsys: pytest.CaptureFixture[str]
    ):
        runner.error = OSError(28, "No space left on device", "/somewhere/file")
        assert cli.main(["run", "base"]) == 2
        said = capsys.readouterr().err
        assert (
            said.startswith("diag: /somewhere/file: No space left on device; free some")
            and said.count("\n") == 1
        )

    def test_a_disk_that_protects_itself_is_the_users(
        self, runner: SimpleNamespace, capsys: pytest.CaptureFixture[str]
    ):
        runner.error = OSError(30, "Read-only file system", "/somewhere/file")
        assert cli.main(["run", "base"]) == 2
        assert capsys.readouterr().err == "diag: /somewhere/file: Read-only file system\n"

    def test_a_lost_process_is_no_fault_of_ours(
        self, runner: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ):
        runner.error = RuntimeError("[gloo/transport/tcp/pair.cc:544] Connection closed by peer [::1]:40261")
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
        assert cli.main(["run", "base"]) == 3
        last = capsys.readouterr().err.splitlines()[-1]
        assert "another process of this training is gone" in last and "the same command continues" in last
        monkeypatch.delenv("TORCHELASTIC_RUN_ID")
        assert cli.main(["run", "base"]) == 3
        assert "fault in diag itself" in capsys.readouterr().err

    @pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
    def test_a_time_limit_is_above_zero(
        self, minutes: str, runner: SimpleNamespace, capsys: pytest.CaptureFixture[str]
    ):
        assert cli.main(["run", "base", "--time-limit", minutes]) == 2
        assert "minutes above 0" in capsys.readouterr().err and runner.settings is None

    def test_a_fault_of_ours_is_not_hidden(self, runner: SimpleNamespace, capsys: pytest.CaptureFixture[str]):
        runner.error = ZeroDivisionError("ours")
        assert cli.main(["run", "base"]) == 3
        err = capsys.readouterr().err
        assert "ZeroDivisionError: ours" in err
        assert err.splitlines()[-1].startswith("diag: this is a fault in diag itself")

    def test_ctrl_c_says_how_to_go_on(self, runner: SimpleNamespace, capsys: pytest.CaptureFixture[str]):
        runner.error = KeyboardInterrupt()
        assert cli.main(["run", "base"]) == 130
        assert "continues where it stopped" in capsys.readouterr().err

    def test_a_reader_that_is_gone_is_no_verdict_above_the_limit(self):
        """1 would say that `--fail-on` was reached."""
        command = [sys.executable, "-m", "diag_lib.cli", "--help"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            process.stdout.close()
            assert process.wait(60) == 141
            assert process.stderr.read() == ""


class TestRun:
    @pytest.mark.parametrize("code", [0, 1, 3])
    def test_the_exit_code_is_the_workbooks(self, code: int, runner: SimpleNamespace):
        runner.code = code
        assert cli.main(["run", "base"]) == code

    def test_steps_without_a_verdict_say_what_they_found(
        self, runner: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        found = [
            {"id": "audit.resize", "severity": "note", "message": "Shrunk."},
            {"id": "audit.leakage", "severity": "warning", "message": "One image leaks.\x1b[2J"},
            {"id": "audit.unreadable", "severity": "error", "message": "One file is broken."},
        ]
        (tmp_path / "out" / "evidence").mkdir(parents=True)
        (tmp_path / "out" / "evidence" / "audit.json").write_text(json.dumps({"findings": found}))
        for steps, told in (("01", 2), ("02", 0)):
            assert cli.main(["run", "base", "--steps", steps, "--out", str(tmp_path / "out")]) == 0
            *lines, _ = capsys.readouterr().out.splitlines()
            assert len(lines) == told
            if told:
                assert lines[0] == "error: One file is broken. (audit.unreadable)"
                assert lines[1] == "warning: One image leaks.\\x1b[2J (audit.leakage)"

    def test_everything_typed_reaches_the_workbook(self, runner: SimpleNamespace, tmp_path: Path):
        path = _settings_file(tmp_path)
        arguments = ["run", str(path), "--set", "training.seed=7", "--set", "student.trainable_s2=[all]"]
        arguments += [
            "--out",
            "elsewhere",
            "--steps",
            "03-04,00",
            "--fresh",
            "--fail-on",
            "error",
            "--time-limit",
            "1.5",
            "--trust-code",
        ]
        assert cli.main(arguments) == 0
        assert runner.settings.training.seed == 7
        assert runner.settings.student.trainable_s2 == ["all"]
        assert runner.settings.dataset.root == tmp_path / "pictures"
        assert runner.out == tmp_path / "elsewhere"
        assert runner.options["steps"] == ("symptoms", "logits", "baseline")
        assert runner.options["fresh"] is True
        assert runner.options["fail_on"] == "error"
        assert runner.options["time_limit"] == 90
        assert os.environ["DIAG_TRUST_CODE"] == "1"

    def test_defaults(self, runner: SimpleNamespace, tmp_path: Path):
        assert cli.main(["run", str(_settings_file(tmp_path))]) == 0
        assert runner.out == tmp_path / "reports" / "mine"
        assert tuple(runner.options["steps"]) == STEPS
        assert runner.options["fresh"] is False
        assert runner.options["fail_on"] is None
        assert runner.options["time_limit"] is None
        assert "DIAG_TRUST_CODE" not in os.environ

    def test_it_ends_with_verdict_fix_and_report(
        self, runner: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        folder = tmp_path / "reports" / "base"
        folder.mkdir(parents=True)
        cause = {"id": "leakage", "status": "established", "fix": {"text": "Split by group."}}
        verdict = {"summary": "Validation pictures stand in train.", "causes": [cause]}
        (folder / "verdict.json").write_text(json.dumps(verdict), encoding="utf-8")
        cli.main(["run", "base"])
        out = capsys.readouterr().out
        assert "Verdict: Validation pictures stand in train." in out
        assert "1. leakage (established): Split by group." in out
        assert str(Path("reports/base/index.html")) in out

    @pytest.mark.parametrize("causes", [[{"id": "x"}], [7], 5, None])
    def test_a_verdict_of_another_form_is_told_as_far_as_it_goes(
        self, runner: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], causes: Any
    ):
        folder = tmp_path / "reports" / "base"
        folder.mkdir(parents=True)
        (folder / "verdict.json").write_text(
            json.dumps({"summary": "told", "causes": causes}), encoding="utf-8"
        )
        assert cli.main(["run", "base"]) == 0
        assert "Verdict: told" in capsys.readouterr().out

    def test_steps_without_the_verdict_show_no_older_verdict(
        self, runner: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        folder = tmp_path / "reports" / "base"
        folder.mkdir(parents=True)
        (folder / "verdict.json").write_text('{"summary": "old", "causes": []}', encoding="utf-8")
        cli.main(["run", "base", "--steps", "01"])
        assert "old" not in capsys.readouterr().out


class TestTraining:
    @pytest.mark.parametrize(
        ("command", "assignment", "says"),
        [
            ("train --arm status_quo", "dataset.root=nowhere", "nowhere"),
            ("train --arm status_quo", "teacher.weights=nope.pth", "nope.pth"),
            ("train --arm status_quo", "student.trainable_s1=[nope]", "nope"),
            ("train --arm status_quo", "dataset.image_size=3", "image_size"),
            ("train --arm status_quo", "training.weight_decay=1e300", "weight_decay"),
            ("finetune-teacher", "dataset.root=nowhere", "nowhere"),
            ("finetune-teacher", "teacher.weights=nope.pth", "nope.pth"),
            ("finetune-teacher", "dataset.image_size=3", "image_size"),
        ],
    )
    def test_a_mistake_leaves_no_folder(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, assignment: str, says: str
    ):
        write_images(tmp_path / "data", train=4, val=4)
        write_teacher(tmp_path / "teacher.safetensors")
        settings, out = tmp_path / "my.yaml", tmp_path / "out"
        settings.write_text(tiny_settings(tmp_path).to_yaml(), encoding="utf-8")
        name, *options = command.split()
        assert cli.main([name, str(settings), *options, "--out", str(out), "--set", assignment]) == 2
        assert says in capsys.readouterr().err
        assert not out.exists()

    @pytest.mark.parametrize("out", ["", ".", "..", "/"])
    def test_a_folder_in_which_one_works_is_no_run_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
    ):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["run", "base", "--out", out, "--steps", "01"]) == 2
        assert "a folder of its own" in capsys.readouterr().err
        assert not any(tmp_path.iterdir())

    def test_the_home_folder_has_its_short_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        assert named_out(Path("~/runs/a")) == tmp_path / "runs" / "a"


class TestSettings:
    def test_a_preset_beside_a_file_changes_its_training_only(self, tmp_path: Path):
        path = _settings_file(tmp_path, "dataset: {root: pictures, image_size: 64}\ntraining: {seed: 5}\n")
        settings = load_settings(str(path), "safest", [])
        assert settings.training.distillation.alpha_distill == 0.01
        assert settings.training.distillation.alpha_task == 0.99
        assert settings.dataset.root == tmp_path / "pictures"
        assert settings.dataset.image_size == 64
        assert settings.training.seed == 5

    def test_set_wins_over_the_preset(self, tmp_path: Path):
        path = _settings_file(tmp_path)
        settings = load_settings(str(path), "safest", ["training.distillation.alpha_distill=0.2"])
        assert settings.training.distillation.alpha_distill == 0.2
        assert settings.training.distillation.alpha_task == 0.99

    def test_a_dataset_alone_is_diagnosed_with_the_guides_settings(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(tmp_path)
        settings = load_settings(None, None, ["dataset.root=photos"])
        assert settings.dataset.root == tmp_path / "photos"
        assert settings.training == load_settings("base", None, []).training

    @pytest.mark.parametrize("name", preset_names())
    def test_every_preset_can_be_named_either_way(self, name: str):
        assert load_settings(None, name, []) == load_settings(name, None, [])


class TestSteps:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (None, STEPS),
            ("01", ("audit",)),
            ("1", ("audit",)),
            ("01,03-05", ("audit", "logits", "baseline", "distillation")),
            ("teacher", ("teacher",)),
            ("Teacher", ("teacher",)),
            ("02_teacher", ("teacher",)),
            ("verdict, audit", ("audit", "verdict")),
            ("audit-logits", ("audit", "teacher", "logits")),
            ("02-02", ("teacher",)),
            ("00-06", STEPS),
        ],
    )
    def test_lists_ranges_and_names(self, text: str | None, expected: Sequence[str]):
        assert parse_steps(text) == tuple(expected)

    @pytest.mark.parametrize("text", ["7", "-1", "1-", "02_audit", "1..3", "٣", "03-01", ",", "0x1", "001"])
    def test_anything_else_is_a_users_mistake(self, text: str):
        with pytest.raises(UserError, match="--steps"):
            parse_steps(text)

    @given(st.sets(st.integers(0, len(STEPS) - 1), min_size=1))
    def test_any_set_in_any_spelling_comes_back_in_running_order(self, numbers: set[int]):
        spelled = ",".join(STEPS[n] if n % 2 else f"{n:02d}" for n in sorted(numbers, reverse=True))
        assert parse_steps(spelled) == tuple(STEPS[n] for n in sorted(numbers))


class TestHelp:
    def test_lists_every_command(self, capsys: pytest.CaptureFixture[str]):
        assert cli.main([]) == 0
        out = capsys.readouterr().out
        assert all(command in out for command in COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, command: str, capsys: pytest.CaptureFixture[str]):
        assert cli.main([command, "--help"]) == 0
        assert "Usage: diag" in capsys.readouterr().out

    def test_version(self, capsys: pytest.CaptureFixture[str]):
        assert cli.main(["--version"]) == 0
        assert capsys.readouterr().out == f"diag {diag_lib.__version__}\n"

    def test_help_imports_nothing_heavy(self):
        heavy = (
            "torch",
            "pandas",
            "numpy",
            "matplotlib",
            "papermill",
            "sklearn",
            "timm",
            "diag_lib.settings",
        )
        code = (
            "import sys; from diag_lib import cli; code = cli.main(['--help']);"
            f"sys.exit(code or ', '.join(set(sys.modules) & set({heavy!r})) or None)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def test_help_answers_at_once(self):
        def processor_seconds() -> float:
            before = os.times()
            subprocess.run([sys.executable, "-m", "diag_lib.cli", "--help"], capture_output=True, check=True)
            after = os.times()
            return sum(after[2:4]) - sum(before[2:4])  # of child processes: a busy machine does not change it

        assert min(processor_seconds() for _ in range(5)) < 0.3

    def test_completion_knows_commands_and_presets(self):
        def complete(words: str, place: int) -> list[str]:
            environment = os.environ | {
                "_DIAG_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)
            }  # fmt: skip
            done = subprocess.run(
                [sys.executable, "-m", "diag_lib.cli"], env=environment, capture_output=True, text=True
            )
            return done.stdout.split()

        assert "finetune-teacher" in complete("diag fine", 1)
        assert "safest" in complete("diag run --preset sa", 3)
        assert complete("diag faults --cause lr_too", 3) == [
            "lr_too_low",
            "lr_too_high",
            "lr_too_low_hundredth",
        ]
        assert complete("diag faults --suite f", 3) == ["full"]
        assert "standardized" in complete("diag train my.yaml --arm st", 4)
        assert "training.seed=" in complete("diag run --set training.s", 3)
        assert complete("diag run --steps bas", 3) == ["baseline"]

    def test_completion_of_settings_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "setups").mkdir()
        for name in ("safe.yaml", "safe.txt", "setups/mine.yml"):
            (tmp_path / name).touch()
        assert complete_config("sa") == ["safest", "safe.yaml"]
        assert complete_config("se") == ["setups/"]
        assert complete_config("setups/") == ["setups/mine.yml"]
        assert complete_config("nowhere/") == []


class TestDoctor:
    def test_tells_versions_and_is_ready_here(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "WildRF_LaDeDa.pth").touch()
        code = cli.main(["doctor"])
        out = capsys.readouterr().out
        for name in (
            "python",
            "torch",
            "device",
            "threads",
            "disk",
            "kernel",
            "training",
            "teacher",
            "budgets",
        ):
            assert f"  {name} " in out, out
        assert "WildRF_LaDeDa.pth" in out
        assert (code == 0) == ("FAIL" not in out.replace("marked FAIL", ""))

    def test_a_missing_package_is_named_with_its_remedy(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        from diag_lib import doctor

        monkeypatch.setattr(doctor, "EXTRAS", {"no_such_module_here": ("demo", "diag demo")})
        checks = {check.name: check for check in doctor.examine(tmp_path)}
        assert checks["no_such_module_here"].level == "error"
        assert "pip install 'diag-lib[demo]'" in checks["no_such_module_here"].text


class TestLab:
    def test_the_checkouts_notebooks_are_opened(self):
        from diag_lib.lab import lab_command, workspace

        root = workspace(Path.cwd())
        assert root == Path(diag_lib.__file__).resolve().parent.parent / "notebooks"
        command = lab_command(root, ["--port", "9000"])
        assert command[:3] == [sys.executable, "-m", "jupyterlab"]
        assert command[-2:] == ["--port", "9000"]
        assert not any("ip=0.0.0.0" in word for word in command)

    def test_an_installed_package_gives_copies_and_keeps_edits(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        from diag_lib import lab, resources

        packaged = tmp_path / "packaged"
        packaged.mkdir()
        (packaged / "00_symptoms.ipynb").write_text("new")
        (packaged / "01_audit.ipynb").write_text("new")
        (tmp_path / "mine" / lab.COPIES).mkdir(parents=True)
        (tmp_path / "mine" / lab.COPIES / "00_symptoms.ipynb").write_text("edited")
        monkeypatch.setattr(resources, "checkout_dir", lambda: None)
        monkeypatch.setattr(resources, "notebooks_dir", lambda: packaged)
        root = lab.workspace(tmp_path / "mine")
        assert (root / "00_symptoms.ipynb").read_text() == "edited"
        assert (root / "01_audit.ipynb").read_text() == "new"

    def test_further_options_go_to_jupyterlab(self, monkeypatch: pytest.MonkeyPatch):
        seen: list[list[str]] = []

        class Process:
            def __init__(self, command: list[str], env: dict[str, str]):
                assert "lab_config" in env["JUPYTER_CONFIG_PATH"]  # no question about news
                seen.append(command)
                self.interruptions = 2

            def wait(self) -> int:
                self.interruptions -= 1
                if self.interruptions >= 0:
                    raise KeyboardInterrupt
                return 0

        monkeypatch.setattr("diag_lib.lab.subprocess.Popen", Process)
        assert cli.main(["lab", "--no-browser", "--port=9000"]) == 0
        assert seen[0][-2:] == ["--no-browser", "--port=9000"]
