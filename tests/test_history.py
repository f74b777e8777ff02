"""Is the user's own training history read right, whatever program wrote it, and refused in one clear line?"""

import json
import math
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diag_lib.errors import UserError
from diag_lib.history import COLUMNS, History, column_of, from_lists, read_history, write_guide_json

GUIDE = {
    "stage": [1, 1, 2],
    "train_loss": [230.1, 226.0, 225.2],
    "train_distill_loss": [459.5, 451.2, 449.7],
    "train_task_loss": [0.70, 0.695, 0.694],
    "val_loss": [0.70, 0.70, 0.69],
    "val_acc": [0.5, 0.51, 0.49],
    "val_auc": [0.49, 0.51, 0.50],
}


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def same_as_guide(history, *, without=()):
    assert list(history.epochs) == ["epoch", *COLUMNS]
    assert history.epochs["epoch"].tolist() == [1, 2, 3]
    for column, values in GUIDE.items():
        if column not in without:
            np.testing.assert_allclose(history.values(column), values, err_msg=column)
    for column in without:
        assert not history.known(column)


def one_line(message):
    assert "\n" not in message
    return message


def refused(path):
    with pytest.raises(UserError) as error:
        read_history(path)
    return one_line(str(error.value))


def test_the_guides_json(tmp_path):
    same_as_guide(read_history(write(tmp_path / "training_history_two_stage.json", json.dumps(GUIDE))))


def test_json_with_other_entries_nesting_and_records(tmp_path):
    more = {**GUIDE, "best_auc": 0.51, "config": {"lr": 1}, "lr": [1e-3] * 3, "epochs": [1, 2, 3]}
    same_as_guide(read_history(write(tmp_path / "a.json", json.dumps(more))))
    same_as_guide(read_history(write(tmp_path / "b.json", json.dumps({"history": GUIDE}))))
    records = pd.DataFrame(GUIDE).to_dict("records")
    same_as_guide(read_history(write(tmp_path / "c.json", json.dumps(records))))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_of_any_kind(tmp_path, separator, encoding, newline):
    text = pd.DataFrame(GUIDE).to_csv(sep=separator, index=False, lineterminator=newline)
    same_as_guide(read_history(write(tmp_path / "history.csv", text, encoding)))


def test_csv_with_decimal_commas_blank_lines_and_quotes(tmp_path):
    text = pd.DataFrame(GUIDE).to_csv(sep=";", decimal=",", index=False, quoting=1)
    same_as_guide(read_history(write(tmp_path / "history.csv", "\n" + text.replace("\n", "\n\n"))))


def test_csv_of_a_logger_that_separates_training_from_validation(tmp_path):
    header = "epoch,step,train_loss,val_loss,val_auroc\n"
    text = header + "0,10,225.1,,\n0,10,,0.7,0.5\n1,20,225.0,,\n1,20,,0.69,0.52\n"
    history = read_history(write(tmp_path / "metrics.csv", text))
    assert history.values("train_loss").tolist() == [225.1, 225.0]
    assert history.values("val_auc").tolist() == [0.5, 0.52]


def test_epochs_that_start_again_are_a_second_stage(tmp_path):
    text = "epoch,loss,auc\n1,225,0.5\n2,224,0.5\n1,223,0.5\n2,222,0.51\n3,221,0.5\n"
    history = read_history(write(tmp_path / "log.csv", text))
    assert history.values("stage").tolist() == [1, 1, 2, 2, 2]
    assert history.epochs["epoch"].tolist() == [1, 2, 3, 4, 5]


def test_jsonl_with_steps_and_a_cut_last_line(tmp_path):
    rows = [{"event": "start", "seed": 42}]
    for row in pd.DataFrame(GUIDE).to_dict("records"):
        rows += [{"event": "step", "train_loss": 999.0}, {"event": "epoch", **row}]
    text = "\n".join(map(json.dumps, rows))
    history = read_history(write(tmp_path / "record.jsonl", text + '\n{"event": "epo'))
    same_as_guide(history)
    assert any("cut off" in note for note in history.notes)
    same_as_guide(read_history(write(tmp_path / "record.log", text)))  # by content
    broken = write(tmp_path / "broken.jsonl", text.replace('"start"', '"start'))
    assert "line 1" in refused(broken)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("val/AUC", "val_auc"),
        ("valAuc", "val_auc"),
        ("validation_auroc", "val_auc"),
        ("roc_auc", "val_auc"),
        ("train_auc", None),
        ("Accuracy/val", "val_acc"),
        ("test_accuracy", "val_acc"),
        ("loss", "train_loss"),
        ("Loss/train", "train_loss"),
        ("train/total_loss", "train_loss"),
        ("epoch_loss", "train_loss"),
        ("kd_loss", "train_distill_loss"),
        ("train_distillation_loss", "train_distill_loss"),
        ("mse", "train_distill_loss"),
        ("bce", "train_task_loss"),
        ("loss_task", "train_task_loss"),
        ("val_loss", "val_loss"),
        ("eval/bce", "val_loss"),
        ("val_distill_loss", None),
        ("epoch", "epoch"),
        ("Stage", "stage"),
        ("lr", None),
        ("train_loss_step", None),
        ("best_auc", None),
        ("grad_norm_task", None),
    ],
)
def test_names_from_other_programs(name, column):
    assert column_of(name) == column


def test_the_guides_own_name_wins_over_a_synonym(tmp_path):
    text = "loss,train_loss,test_auc,val_auc\n1,225,0.9,0.5\n1,224,0.9,0.51\n"
    history = read_history(write(tmp_path / "h.csv", text))
    assert history.values("train_loss").tolist() == [225, 224]
    assert history.values("val_auc").tolist() == [0.5, 0.51]
    assert len(history.notes) == 2


@pytest.mark.parametrize(
    ("text", "auc", "accuracy"),
    [
        # Keras sorts its columns: the training's come first
        (
            "epoch,accuracy,auc_1,loss,val_accuracy,val_auc_1,val_loss\n0,.91,.97,.3,.51,.50,.9\n1,.95,.99,.2,.52,.51,1.1\n",
            [0.50, 0.51],
            [0.51, 0.52],
        ),
        ("auroc,auroc_val,binary_accuracy,val_binary_accuracy\n.9,.4,.8,.3\n", [0.4], [0.3]),
        ("auc,accuracy\n.9,.8\n", [0.9], [0.8]),  # alone it is taken for the validation's
        ("test_auc,valid_auc,val_accuracy\n.9,.6,.5\n", [0.6], [0.5]),
    ],
)
def test_a_name_that_says_validation_wins_over_one_that_says_nothing(tmp_path, text, auc, accuracy):
    history = read_history(write(tmp_path / "h.csv", text))
    assert history.values("val_auc").tolist() == auc
    assert history.values("val_acc").tolist() == accuracy


def test_a_trainer_state_of_hugging_face(tmp_path):
    log = [
        {"epoch": 0.5, "loss": 0.9, "learning_rate": 1e-3, "step": 5},
        {"epoch": 1.0, "loss": 0.8, "learning_rate": 1e-3, "step": 10},
        {"epoch": 1.0, "eval_loss": 0.7, "eval_auc": 0.5, "eval_accuracy": 0.4, "step": 10},
        {"epoch": 1.5, "loss": 0.6, "learning_rate": 1e-3, "step": 15},
        {"epoch": 2.0, "eval_loss": 0.6, "eval_auc": 0.6, "eval_accuracy": 0.5, "step": 20},
        {"epoch": 2.0, "train_runtime": 12.0, "train_loss": 0.7, "step": 20},
    ]
    history = read_history(
        write(tmp_path / "trainer_state.json", json.dumps({"epoch": 2.0, "log_history": log}))
    )
    assert history.values("val_auc").tolist() == [0.5, 0.6]
    assert history.values("val_loss").tolist() == [0.7, 0.6]
    assert history.values("train_loss").tolist() == [0.8, 0.6]


def test_lists_of_a_split_are_read_under_its_name(tmp_path):
    nested = {"train": {"loss": [1.0, 0.9]}, "val": {"auc": [0.5, 0.6], "loss": [0.7, 0.6]}}
    history = read_history(write(tmp_path / "h.json", json.dumps(nested)))
    assert history.values("train_loss").tolist() == [1.0, 0.9]
    assert history.values("val_auc").tolist() == [0.5, 0.6]


def test_empty_lists_are_said_to_be_empty(tmp_path):
    with pytest.raises(UserError, match="train_loss, val_auc: empty"):
        read_history(write(tmp_path / "h.json", '{"train_loss": [], "val_auc": []}'))


def test_what_is_not_a_number_becomes_nan_or_is_named(tmp_path):
    text = "epoch,train_loss,val_auc\n1,nan,0.5\n2,,n/a\n3,inf,0.5\n4,1.5e2,NaN\n"
    history = read_history(write(tmp_path / "h.csv", text))
    loss = history.values("train_loss")
    assert np.isnan(loss[:2]).all()
    assert loss[2] == math.inf
    assert loss[3] == 150
    assert np.isnan(history.values("val_auc")[[1, 3]]).all()
    nulls = read_history(
        write(
            tmp_path / "h.json", '{"train_loss": [1, null, NaN, Infinity], "val_auc": [0.5, 0.5, 0.5, 0.5]}'
        )
    )
    assert np.isnan(nulls.values("train_loss")[1:3]).all()
    bad = refused(write(tmp_path / "bad.json", '{"train_loss": [1.0, "tensor(0.69)"]}'))
    assert "train_loss, entry 2" in bad
    assert "tensor(0.69)" in bad


def test_percent_is_noticed(tmp_path):
    history = read_history(write(tmp_path / "h.csv", "loss,acc,auc\n1,51.0,49.5\n1,50.0,52.0\n"))
    np.testing.assert_allclose(history.values("val_auc"), [0.495, 0.52])
    assert any("percent" in note for note in history.notes)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("h.json", '{"train_loss": [1, 2], "val_auc": [0.5]}', ["train_loss 2", "val_auc 1"]),
        ("h.json", '{"train_loss": [1, 2', ["JSON", "line 1"]),
        ("h.json", "", ["JSON"]),
        ("h.json", "3", ["single value"]),
        ("h.json", "[" * 100_000, ["JSON"]),
        ("h.json", '{"weights": [1, 2]}', ["weights", "train_loss"]),
        ("h.json", '{"train_loss": []}', ["train_loss"]),
        ("h.json", '{"train_loss": [null, null]}', ["finite"]),
        ("h.json", '{"val_auc": [true, 0.5]}', ["val_auc, entry 1"]),
        ("h.json", '{"val_auc": [0.5, -0.5]}', ["between 0 and 1"]),
        ("h.json", '{"train_loss": [1' + "0" * 400 + "]}", ["train_loss"]),
        ("h.json", "[]", ["records"]),
        ("h.csv", "train_loss,val_auc\n", ["no epochs"]),
        ("h.csv", "a,b\n1,2\n", ["a, b"]),
        ("h.csv", "train_loss,val_auc\n1,0.5,7\n", ["row 2"]),
        ("h.csv", "train_loss\nhigh\n", ["'high'"]),
        ("h.csv", "", ["no epochs"]),
    ],
)
def test_wrong_files_get_one_line(tmp_path, name, content, words):
    message = refused(write(tmp_path / name, content))
    assert message.startswith(f"history {name}: ")
    for word in words:
        assert word in message
    assert str(tmp_path) not in message


def test_files_that_are_no_text(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was opened",))

    for protocol in (0, 2, 5):
        path = tmp_path / f"h{protocol}.json"
        path.write_bytes(pickle.dumps({"a": Bomb()}, protocol=protocol))
        assert "pickle" in refused(path)
    latin = tmp_path / "latin.csv"
    latin.write_bytes("époque;loss\n1;2\n".encode("latin-1"))
    assert "UTF-8" in refused(latin)
    assert "no such file" in refused(tmp_path / "absent.json")
    (tmp_path / "empty").mkdir()
    assert "no TensorBoard events" in refused(tmp_path / "empty")


def test_a_size_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("diag_lib.history.MAX_BYTES", 100)
    assert "limit" in refused(write(tmp_path / "h.csv", "train_loss\n" + "1.0\n" * 100))


finite = st.floats(0, 1e6) | st.just(math.nan)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2]), finite, finite, finite, finite, st.floats(0, 1), st.floats(0, 1)),
        min_size=1,
        max_size=8,
    )
)
def test_written_histories_read_back_the_same(tmp_path_factory, rows):
    lists = {name: list(values) for name, values in zip(COLUMNS, zip(*rows, strict=True), strict=True)}
    history = from_lists(lists, "an arm")
    path = write_guide_json(history, tmp_path_factory.mktemp("h") / "training_history_two_stage.json")
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert list(content) == list(COLUMNS)
    again = read_history(path)
    pd.testing.assert_frame_equal(again.epochs, history.epochs)
    assert isinstance(again, History)
    assert len(again) == len(rows)


def test_absent_columns_are_unknown(tmp_path):
    history = from_lists({"train_loss": [1.0, 0.5]}, "x")
    assert history.known("train_loss")
    assert not history.known("val_auc")
    assert history.values("stage").tolist() == [1, 1]


def write_events(folder, series):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    writer = tensorboard.SummaryWriter(str(folder))
    for tag, points in series.items():
        for step, value in points:
            writer.add_scalar(tag, value, step)
    writer.close()


def test_tensorboard_with_training_by_step_and_validation_by_epoch(tmp_path):
    write_events(
        tmp_path / "run",
        {
            "Loss/train": [(step, 225.0 - step) for step in range(1, 31)],
            "Loss/distill": [(10, 450), (20, 440), (30, 430)],
            "AUC/val": [(10, 0.5), (20, 0.52), (30, 0.55)],
            "lr": [(10, 1e-3)],
        },
    )
    history = read_history(tmp_path / "run")
    np.testing.assert_allclose(history.values("train_loss"), [225 - 5.5, 225 - 15.5, 225 - 25.5])
    np.testing.assert_allclose(history.values("val_auc"), [0.5, 0.52, 0.55], rtol=1e-6)
    np.testing.assert_allclose(history.values("train_distill_loss"), [450, 440, 430])
    file = next((tmp_path / "run").glob("*tfevents*"))
    pd.testing.assert_frame_equal(read_history(file).epochs, history.epochs)


def test_tensorboard_on_two_clocks_and_in_subfolders(tmp_path):
    write_events(
        tmp_path / "log" / "train", {"epoch_loss": [(step, float(step // 10)) for step in range(20)]}
    )
    write_events(tmp_path / "log" / "validation", {"epoch_loss": [(0, 0.7), (1, 0.6)]})
    history = read_history(tmp_path / "log")
    np.testing.assert_allclose(history.values("train_loss"), [0, 1])
    np.testing.assert_allclose(history.values("val_loss"), [0.7, 0.6], rtol=1e-6)


def test_tensorboard_mistakes(tmp_path, monkeypatch):
    for version in ("version_0", "version_1"):
        write_events(tmp_path / "runs" / version, {"train/loss": [(0, 1.0), (1, 0.5)]})
    assert "several runs" in refused(tmp_path / "runs")
    write_events(tmp_path / "other", {"lr": [(0, 1.0)]})
    assert "found lr" in refused(tmp_path / "other")
    junk = tmp_path / "events.out.tfevents.0"
    junk.write_bytes(b"not events at all")
    assert "history events.out.tfevents.0" in refused(junk)
    for module in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert "diag-lib[tensorboard]" in refused(tmp_path / "runs" / "version_0")
