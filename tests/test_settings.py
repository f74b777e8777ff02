"""Settings: every key of the interface, validated, with one helpful line for every mistake."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from diag_lib.errors import UserError
from diag_lib.plain_yaml import parse_yaml
from diag_lib.settings import Settings, load, parse_assignments, preset_names
from diag_lib.settings.merging import every_key


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_base_preset_is_the_default_in_full() -> None:
    base = load("base")
    defaults = Settings().to_dict()
    for key in ("dataset", "runtime"):  # paths have been made absolute
        assert base.to_dict()[key].keys() == defaults[key].keys()
    for key in ("teacher", "student", "pooling", "training", "history", "thresholds"):
        assert base.to_dict()[key] == defaults[key]
    assert base.training.distillation.alpha_distill == 0.5
    assert base.dataset.root == Path.cwd() / "data/demo"


@pytest.mark.parametrize(("preset", "alphas"), [("test_bce_only", (0.0, 1.0)), ("safest", (0.01, 0.99))])
def test_presets_change_only_the_weights(preset: str, alphas: tuple[float, float]) -> None:
    loaded = load(preset)
    assert (loaded.training.distillation.alpha_distill, loaded.training.distillation.alpha_task) == alphas
    assert loaded.digest("student", "teacher", "dataset") == load("base").digest(
        "student", "teacher", "dataset"
    )
    assert loaded.name == preset


def test_every_preset_loads() -> None:
    assert {"base", "demo", "safest", "test_bce_only"} <= set(preset_names())
    for name in preset_names():
        load(name)


def test_yaml_round_trip_is_exact(tmp_path: Path) -> None:
    original = load(
        "base", {"training.lr_s1": 3e-4, "teacher.weights": "some/teacher.pth", "history": "h.json"}
    )
    (tmp_path / "copy.yaml").write_text(original.to_yaml())
    assert load(tmp_path / "copy.yaml").to_dict() == original.to_dict()


def test_relative_paths_are_relative_to_the_file_and_for_overrides_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "dataset: {root: images}\nteacher: {weights: best.pth}\n"
        "runtime: {weights_dir: w}\nhistory: ../h.csv\n"
    )
    monkeypatch.chdir(tmp_path)
    mine = load("project/mine.yaml", {"dataset.curation": "curation.csv"})
    assert mine.name == "mine"
    assert mine.dataset.root == folder / "images"
    assert mine.teacher.weights == str(folder / "best.pth")
    assert mine.runtime.weights_dir == folder / "w"
    assert mine.history is not None and mine.history.resolve() == tmp_path / "h.csv"
    assert mine.dataset.curation == tmp_path / "curation.csv"


def test_an_alias_stays_an_alias(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("teacher: {weights: finetuned}\n")
    assert load(tmp_path / "a.yaml").teacher.weights == "finetuned"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"training.distilation.alpha_task": 1}, ["training.distilation", "did you mean 'distillation'"]),
        ({"training.optimizer": "adamx"}, ["training.optimizer", "did you mean 'adam'", "adamw, sgd"]),
        ({"lr_s1": 1e-3}, ["lr_s1", "belongs at training.lr_s1"]),
        ({"training.batch_size": 0}, ["training.batch_size", "greater than or equal to 1"]),
        ({"training.batch_size": True}, ["training.batch_size", "a whole number is expected"]),
        ({"training.lr_s1": "fast"}, ["training.lr_s1", "a number is expected", "'fast'"]),
        ({"training.lr_s1": float("nan")}, ["training.lr_s1", "finite"]),
        ({"training": 5}, ["training", "is a section"]),
        ({"dataset.normalize_mean": [0.5, 0.5]}, ["dataset.normalize_mean", "at least 3"]),
        ({"dataset.normalize_std": [0.2, 0.2, 0]}, ["dataset.normalize_std.2", "greater than 0"]),
        ({"dataset.val_split": "train"}, ["train_split and val_split", "must differ"]),
        ({"dataset.root": 7}, ["dataset.root", "a path is expected"]),
        ({"teacher.arch": "ladeda8"}, ["teacher.arch", "tiny_ladeda", "did you mean 'ladeda9'"]),
        ({"runtime.device": "gpu"}, ["runtime.device", "cuda"]),
        ({"runtime.threads": -1}, ["runtime.threads", "auto"]),
        ({"student.trainable_s1": "fc"}, ["student.trainable_s1", "a list is expected"]),
        ({"student.trainable_s1": []}, ["student.trainable_s1", "at least 1"]),
        ({"thresholds.teacher_auc_low": 0.9}, ["teacher_auc_low", "teacher_auc_good"]),
        (
            {"training.distillation.alpha_distill": 0, "training.distillation.alpha_task": 0.0},
            ["alpha_distill and alpha_task"],
        ),
        ({"training.epochs_s1": 0, "training.epochs_s2": 0}, ["epochs_s1 and epochs_s2"]),
    ],
)
def test_a_mistake_gives_one_line_that_names_the_key(
    override: dict[str, object], expected: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        load("base", override)
    for part in expected:
        assert part in one_line(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x 1\nb: *x\n", "aliases"),
        ("a: !!python/object/apply:os.system ['true']\n", "not readable as YAML"),
        ("training: {}\ntraining: {}\n", "stands twice"),
        ("a: [1\n", "not readable as YAML"),
        ("- 1\n", "a mapping of keys"),
        ("1: 2\n", "keys are text"),
        ("training: {seed: 1}\nextra: 3\n", "extra"),
    ],
)
def test_a_broken_file_gives_one_line_that_names_the_file(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load(tmp_path / "broken.yaml")
    assert "broken.yaml" in one_line(error) and expected in one_line(error)


def test_a_file_that_is_no_text_or_absent_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for name, expected in [
        ("binary.yaml", "UTF-8"),
        ("absent.yaml", "no such settings file"),
        ("", "not a file"),
    ]:
        with pytest.raises(UserError) as error:
            load(tmp_path / name)
        assert expected in one_line(error)
    with pytest.raises(UserError) as error:
        load("bsae")
    assert "did you mean 'base'" in one_line(error)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load(tmp_path / "empty.yaml").training == Settings().training


def test_assignments_are_yaml_values() -> None:
    assert parse_assignments(["training.lr_s1=1e-3", "a=none", "b=[1, 2]", "c=null", "d=x=y"]) == {
        "training.lr_s1": 1e-3,
        "a": "none",
        "b": [1, 2],
        "c": None,
        "d": "x=y",
    }
    with pytest.raises(UserError, match="key=value"):
        parse_assignments(["training.seed"])


def test_settings_are_frozen_and_digest_depends_on_the_named_part_only() -> None:
    base = load("base")
    with pytest.raises(ValueError):
        base.training.seed = 3  # type: ignore[misc]
    other = base.with_overrides({"runtime.processes": 2})
    assert other.digest("training") == base.digest("training")
    assert other.digest() != base.digest()
    assert base.runtime.processes == 1


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-12, max_value=1e12))
def test_numbers_survive_the_yaml_form(value: float) -> None:
    loaded = load("base", {"training.lr_s1": value})
    assert parse_yaml(loaded.to_yaml(), "x")["training"]["lr_s1"] == value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
leaf_keys = list(every_key(Settings().to_dict()))


@given(st.sampled_from(leaf_keys), json_values)
def test_any_value_at_any_key_is_taken_or_refused_in_one_line(key: str, value: object) -> None:
    try:
        load("base", {key: value})
    except UserError as error:
        assert "\n" not in str(error)


@given(st.text(max_size=200))
def test_any_text_is_settings_or_one_line(text: str) -> None:
    try:
        parse_yaml(text, "file")
    except UserError as error:
        assert "\n" not in str(error)


def test_the_guide_nesting_reads_as_plain_yaml() -> None:
    snippet = "training:\n  distillation:\n    alpha_distill: 0.01\n    alpha_task: 0.99\n"
    assert yaml.safe_load(snippet) == parse_yaml(snippet, "x")


def test_a_section_may_be_empty_in_a_file_but_not_on_the_command_line(tmp_path):
    file = tmp_path / "half.yaml"
    file.write_text("training:\n  # batch_size: 64\n")
    assert load(file).training.batch_size == 32
    with pytest.raises(UserError, match=r"override: training: is a section with the keys batch_size"):
        load("base", {"training": None})
