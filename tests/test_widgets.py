"""The boards: numbers against closed forms, pictures that follow the controls, hostile names that stay text."""

import base64
import html
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from steps_data import tiny_settings, write_images, write_teacher

from diag_lib import logits, teacher, widgets
from diag_lib.losses import NORMALIZATIONS, LogitScale
from diag_lib.plots import balance as balance_pictures
from diag_lib.plots import gallery as gallery_pictures
from diag_lib.probes.balance import Choice, Terms, balance, percent, reading, terms
from diag_lib.probes.gallery import ORDERS, Gallery, limit
from diag_lib.probes.threshold import candidates, confusion
from diag_lib.settings import Settings
from diag_lib.widgets.threshold import Files

HOSTILE = "<img src=x onerror=window.hacked=1>.png"
VIEW = "application/vnd.jupyter.widget-view+json"
POOLING = Settings().pooling
SCALE = LogitScale(mean=3.0, std=20.0, median=2.0, mad=10.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("widgets")
    write_images(tmp / "data", train=16, val=12)
    write_teacher(tmp / "teacher.safetensors")
    Image.open(tmp / "data/val/fake/0012.png").save(tmp / "data/val/fake" / HOSTILE)
    return tmp


@pytest.fixture(scope="module")
def result(folder: Path) -> logits.LogitsResult:
    return logits.run(tiny_settings(folder, training__epochs_s2=1), folder / "run", progress=False)


@pytest.fixture
def board(result: logits.LogitsResult) -> widgets.BalanceBoard:
    return widgets.balance_board(result)


@pytest.fixture
def browser(result: logits.LogitsResult, folder: Path) -> widgets.HeatmapBrowser:
    return widgets.heatmap_browser(result, folder / "run")


def maps(seed: int, images: int = 6, patches: int = 9, gain: float = 20.0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    student = rng.normal(0, 1, (images, patches)).astype(np.float32)
    return student, (gain * rng.normal(0.3, 1, (images, patches))).astype(np.float32), np.arange(images) % 2


# ---- the numbers


@given(st.integers(0, 10_000), st.floats(0.1, 100))
def test_mse_and_bce_have_their_closed_forms(seed: int, gain: float) -> None:
    student, taught, labels = maps(seed, gain=gain)
    found = terms(student, taught, labels, Choice(0.5), POOLING, SCALE)
    s, t = student.astype(float), taught.astype(float)
    pooled, size = s.mean(axis=1), s.size
    pull = 2 * (s - t) / size
    push = np.repeat((1 / (1 + np.exp(-pooled)) - labels)[:, None] / size, s.shape[1], axis=1)
    assert found.distill == pytest.approx(np.mean((s - t) ** 2), rel=1e-9)
    bce = np.logaddexp(0, pooled) - labels * pooled
    assert found.task == pytest.approx(bce.mean(), rel=1e-9)
    assert found.distill_norm == pytest.approx(np.linalg.norm(pull), rel=1e-9)
    assert found.task_norm == pytest.approx(np.linalg.norm(push), rel=1e-9)
    expected = (pull * push).sum() / np.linalg.norm(pull) / np.linalg.norm(push)
    assert found.cosine == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_normalisations_are_those_of_training() -> None:
    student, taught, labels = maps(1)
    s, t = student.astype(float), taught.astype(float)
    for name, moved in (
        ("center", t - 3),
        ("standardize", (t - 3) / 20),
        ("robust", (t - 2) / (1.4826 * 10)),
    ):
        found = terms(student, taught, labels, Choice(0.5, normalize=name), POOLING, SCALE)
        assert found.distill == pytest.approx(np.mean((s - moved) ** 2), rel=1e-9), name
    layered = terms(student, taught, labels, Choice(0.5, normalize="layer"), POOLING, SCALE)
    # A map of its own mean and spread has no pull along the image mean, so it cannot agree or disagree with BCE.
    assert layered.cosine == pytest.approx(0, abs=1e-6)


def test_a_teacher_that_is_the_labels_agrees_and_its_negative_contradicts() -> None:
    student, _, labels = maps(2)
    student[:] = 0
    ideal = np.repeat((2.0 * labels - 1)[:, None], student.shape[1], axis=1).astype(np.float32)
    assert terms(student, ideal, labels, Choice(0.5), POOLING, SCALE).cosine == pytest.approx(1)
    assert terms(student, -ideal, labels, Choice(0.5), POOLING, SCALE).cosine == pytest.approx(-1)
    said = reading(balance(terms(student, -ideal, labels, Choice(0.5), POOLING, SCALE), 0.5), Choice(0.5))
    assert "contradict" in said


@given(st.floats(0.01, 1e4), st.floats(0.01, 10), st.floats(0, 1))
def test_shares_and_the_even_weights(distill: float, task: float, alpha: float) -> None:
    found = Terms(distill, task, 3 * distill, task, 0.1)
    now = balance(found, alpha)
    assert now.total == pytest.approx(alpha * distill + (1 - alpha) * task)
    assert 0 <= now.loss_share <= 1
    assert now.gradient_share >= now.loss_share - 1e-12
    assert balance(found, now.even_loss).loss_share == pytest.approx(0.5)
    assert balance(found, now.even_gradient).gradient_share == pytest.approx(0.5)


def test_nothing_to_share_is_said() -> None:
    now = balance(Terms(0.0, 0.7, 0.0, 0.1, math.nan), 1.0)
    assert math.isnan(now.loss_share)
    assert "nothing pulls" in reading(now, Choice(1.0))
    with pytest.raises(ValueError, match="no image"):
        student, taught, labels = maps(3)
        terms(student * np.nan, taught, labels, Choice(0.5), POOLING, SCALE)


@pytest.mark.parametrize(
    ("part", "shown"),
    [(0.0, "0%"), (1.0, "100%"), (0.997, "99.7%"), (0.99995, "more than 99.9%"), (1e-4, "less than 0.1%")],
)  # fmt: skip
def test_shares_are_never_rounded_to_all_or_nothing(part: float, shown: str) -> None:
    assert percent(part) == shown


# ---- the gallery


def gallery(scores: list[float], labels: list[int]) -> Gallery:
    shape = (len(scores), 2, 3)
    taught = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return Gallery(
        [f"{i}.png" for i in range(len(scores))], np.array(labels), taught, 0.5 * taught, np.array(scores), "student",
        lambda i: np.full((8, 8, 3), i, np.uint8),
    )  # fmt: skip


def test_most_wrong_first_within_a_class_and_over_both() -> None:
    shown = gallery([-5.0, 2.0, -1.0, 4.0, math.nan], [0, 0, 1, 1, 1])
    assert shown.order().tolist() == [1, 2, 3, 0, 4]
    assert shown.order(1).tolist() == [2, 3, 4]
    assert shown.order(0, "most right first").tolist() == [0, 1]
    assert shown.order(by="as listed").tolist() == [0, 1, 2, 3, 4]


def test_the_difference_is_teacher_minus_student() -> None:
    shown = gallery([1.0, 2.0], [0, 1])
    np.testing.assert_allclose(shown.maps(1)["difference"], shown.teacher[1] - shown.student[1])
    assert set(shown.limits) == {"teacher", "student", "difference"}


def test_colour_scales_are_never_empty() -> None:
    assert limit(np.zeros((2, 2), np.float32)) == 1.0
    assert limit(np.full((2, 2), np.nan, np.float32)) == 1.0
    assert limit(np.array([-3.0, np.inf, 1.0], np.float32)) == pytest.approx(3.0, rel=0.05)


def test_colour_bars_are_centred_at_zero() -> None:
    figure = gallery_pictures.card(gallery([1.0], [0]), 0, (0, 0))
    images = [ax.images[0] for ax in figure.axes if ax.images][1:]
    assert [image.norm.vmin for image in images] == [-image.norm.vmax for image in images]
    assert len(images) == 3


# ---- the boards


def pictures_of(markup: str) -> list[str]:
    return re.findall(r'src="data:image/png;base64,([^"]+)"', markup)


def size_of(markup: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(pictures_of(markup)[0]))).size


def test_it_starts_at_the_settings(board: widgets.BalanceBoard, result: logits.LogitsResult) -> None:
    weights = result.settings.training.distillation
    assert (board.alpha.value, board.loss.value, board.normalize.value) == (
        0.5,
        weights.loss,
        weights.normalize,
    )
    assert "Your settings" in board.picture.value
    finite = result.pairs.teacher.astype(float) - result.pairs.trained
    assert board.now is not None
    assert board.now.distill == pytest.approx(0.5 * np.mean(finite**2), rel=1e-6)


def test_each_control_redraws_picture_and_reading(board: widgets.BalanceBoard) -> None:
    changes = [
        (board.alpha, 0.01),
        (board.normalize, "standardize"),
        (board.loss, "huber"),
        (board.side, "untrained"),
    ]
    changes += [(board.loss, "bernoulli_kl"), (board.temperature, 8.0)]
    size = size_of(board.picture.value)
    for control, value in changes:
        before = board.picture.value
        control.value = value
        after = board.picture.value
        assert pictures_of(before) != pictures_of(after), control.description
        assert size_of(after) == size  # nothing jumps
    assert "If it were bernoulli_kl with normalisation standardize, untrained student" in board.picture.value


def test_less_alpha_less_share(board: widgets.BalanceBoard) -> None:
    shares = []
    for value in (0.9, 0.5, 0.1, 0.0):
        board.alpha.value = value
        assert board.now is not None
        shares.append((board.now.loss_share, board.now.gradient_share))
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == (0.0, 0.0)


def test_every_normalisation_and_loss_can_be_chosen(board: widgets.BalanceBoard) -> None:
    assert set(board.normalize.options) == set(NORMALIZATIONS)
    board.normalize.value = "layer"
    assert "erases the image mean" in board.picture.value
    board.normalize.value = "center"
    assert "keeps the image means" in board.picture.value


def test_temperature_only_where_it_counts(board: widgets.BalanceBoard) -> None:
    assert board.temperature.disabled
    board.loss.value = "bernoulli_kl"
    assert not board.temperature.disabled


def test_a_lost_student_is_said_not_drawn(result: logits.LogitsResult) -> None:
    import dataclasses

    lost = dataclasses.replace(result.pairs, trained=np.full_like(result.pairs.trained, np.nan))
    board = widgets.balance_board(dataclasses.replace(result, pairs=lost))
    assert "repair that first" in board.picture.value
    board.side.value = "untrained"
    assert pictures_of(board.picture.value)


def test_pictures_are_one_figure(board: widgets.BalanceBoard) -> None:
    found = Terms(450.0, 0.7, 1.0, 0.1, math.nan)
    assert isinstance(balance_pictures.board(found, balance(found, 0.0), Choice(0.0)), Figure)


def test_next_and_previous_go_round(browser: widgets.HeatmapBrowser) -> None:
    first = browser.image
    browser.next.click()
    assert browser.image != first
    browser.previous.click()
    assert browser.image == first
    browser.previous.click()
    assert browser.place.value == browser.place.max == len(browser.gallery.labels)


def test_the_class_filter_and_the_order(browser: widgets.HeatmapBrowser) -> None:
    browser.place.value = 7
    browser.shown.value = 1
    assert (browser.place.value, browser.place.max) == (1, 13)
    assert browser.gallery.labels[browser.image] == 1
    browser.order.value = ORDERS[1]
    fakes = browser.gallery.scores[browser.gallery.labels == 1]
    assert browser.gallery.scores[browser.image] == pytest.approx(fakes.max())
    browser.shown.label = "all"
    assert browser.place.max == len(browser.gallery.labels)


def test_the_chosen_patch_is_read_off_the_maps(browser: widgets.HeatmapBrowser) -> None:
    browser.row.value, browser.column.value = 2, 3
    value = browser.gallery.teacher[browser.image][1, 2]
    assert f"Patch row 2, column 3: teacher {value:+.4g}" in browser.picture.value
    assert f">{value:+.4g}</td>" in browser.picture.value


def test_pixels_belong_to_their_maps(result: logits.LogitsResult, browser: widgets.HeatmapBrowser) -> None:
    for number, example in enumerate(result.pairs.examples):
        image = browser.gallery.paths.index(example.path)
        np.testing.assert_array_equal(browser.gallery.pixels(image), example.pixels, err_msg=str(number))
        np.testing.assert_array_equal(browser.gallery.student[image], example.student)


def test_step_02_shows_the_teachers_maps(folder: Path) -> None:
    found = teacher.run(tiny_settings(folder, training__epochs_s2=1), folder / "run", progress=False)
    shown = widgets.heatmap_browser(found, folder / "run")
    assert shown.gallery.student is None
    example = found.examples[0]
    image = shown.gallery.paths.index(example.path)
    np.testing.assert_allclose(shown.gallery.teacher[image], example.patches)
    assert shown.gallery.scores[image] == pytest.approx(example.score)


class Tags(HTMLParser):
    def __init__(self, markup: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_hostile_names_stay_text(browser: widgets.HeatmapBrowser) -> None:
    listed = next(i for i, path in enumerate(browser.gallery.paths) if path.endswith(HOSTILE))
    browser.place.value = browser._rows.tolist().index(listed) + 1
    markup = browser.picture.value
    assert "&lt;img src=x" in markup
    for tag, attributes in Tags(markup).found:
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/png;base64,")
            assert attributes["alt"]


def test_live_and_still(board: widgets.BalanceBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    board.alpha.value = 0.1
    bundle = board._repr_mimebundle_()
    assert bundle[VIEW]["model_id"] == board.view.model_id
    assert bundle["text/html"] == board.picture.value
    monkeypatch.setenv("DIAG_STATIC", "1")
    assert VIEW not in board._repr_mimebundle_()


def test_a_report_shows_the_picture_and_no_control(board: widgets.BalanceBoard, tmp_path: Path) -> None:
    """Papermill without our kernel leaves both forms in the notebook: the page takes the picture."""
    import nbformat
    import sample_run as sample

    from diag_lib.evidence import RunFolder
    from diag_lib.workbook import render
    from diag_lib.workbook.state import RunState

    run = RunFolder(tmp_path / "run").create()
    (run.root / "notebooks").mkdir()
    made = sample.notebook("logits", "## Balance", "widgets.balance_board(result)")
    made.cells[-1].outputs = [nbformat.v4.new_output("display_data", board._repr_mimebundle_())]
    nbformat.write(made, run.root / "notebooks" / "03_logits.ipynb")
    page = render.write_page(run, RunState("case"), "logits", None).read_text(encoding="utf-8")
    assert pictures_of(board.picture.value)[0] in page
    assert board.view.model_id not in page
    assert "widget-view" not in page
    assert page.count("<script") == page.count(render.sort_script()) == 1  # the one that sorts


def test_controls_have_labels(board: widgets.BalanceBoard, browser: widgets.HeatmapBrowser) -> None:
    assert browser.shown.label == "all"  # one button of each row is pressed from the start

    def leaves(box):  # type: ignore[no-untyped-def]
        return (
            [leaf for child in box.children for leaf in leaves(child)] if hasattr(box, "children") else [box]
        )

    for shown in (board, browser):
        controls = [leaf for leaf in leaves(shown.view) if leaf is not shown.picture]
        assert len(controls) >= 5
        assert all(control.description for control in controls)


# ---- the threshold


@given(
    st.lists(st.tuples(st.integers(0, 1), st.floats(-50, 50)), min_size=1, max_size=60), st.floats(-60, 60)
)
def test_confusion_counts_every_image_once(rows: list[tuple[int, float]], threshold: float) -> None:
    labels, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    found = confusion(labels, scores, threshold)
    right = sum((score > threshold) == bool(label) for label, score in rows)
    assert found.real_hit + found.real_miss == (labels == 0).sum()
    assert found.fake_hit + found.fake_miss == (labels == 1).sum()
    assert found.accuracy == pytest.approx(right / len(rows))


def test_thresholds_cover_everything_and_hold_zero() -> None:
    scores = np.random.default_rng(0).normal(2000, 5, 400)
    values = candidates(scores)
    assert 0.0 in values
    assert len(values) <= 104
    labels = np.arange(400) % 2
    called = [confusion(labels, scores, value) for value in values if value]
    assert called[0].tpr == called[0].fpr == 1.0
    assert called[-1].tpr == called[-1].fpr == 0.0
    assert candidates(np.array([np.nan])) == [0.0]


def test_the_threshold_moves_the_point(folder: Path) -> None:
    found = teacher.run(tiny_settings(folder, training__epochs_s2=1), folder / "run", progress=False)
    shown = widgets.threshold_board(found, folder / "run")
    assert shown.threshold.value == 0.0
    before = shown.picture.value
    shown.threshold.value = shown.threshold.options[-1][1]
    assert shown.picture.value != before
    assert (shown.now.tpr, shown.now.fpr) == (0.0, 0.0)
    assert size_of(before) == size_of(shown.picture.value)
    assert "Reals called fake: none" in shown.picture.value
    fakes = found.of_split("val").query("label == 1").sort_values("score")
    assert f"Fakes called real: the 6 of {len(fakes)} with the lowest scores" in shown.picture.value
    worst = fakes.iloc[0]
    first = re.findall(r'alt="([^"]+)" width="112"', shown.picture.value)[0]
    assert html.unescape(first) == f"{worst.score:+#.3g}  {worst.path}"
    with Image.open(io.BytesIO(base64.b64decode(pictures_of(shown.picture.value)[1]))) as thumbnail:
        np.testing.assert_array_equal(
            np.asarray(thumbnail), np.asarray(Image.open(folder / "data" / worst.path))
        )


def test_mistakes_are_sorted_by_how_wrong_they_are_and_read_when_shown() -> None:
    labels = np.array([0] * 9 + [1] * 3)
    scores = np.array([1.0, 9, 3, 4, 5, 6, 7, 8, math.nan, -2, -7, 6])
    names = [f"{row}.png" for row in range(11)] + [HOSTILE]
    read: list[str] = []

    def pixels(path: str) -> np.ndarray:
        read.append(path)
        return np.zeros((8, 8, 3), np.uint8)

    shown = widgets.ThresholdBoard({"it": (labels, scores)}, Files({"it": names}, pixels))
    assert read == [f"{row}.png" for row in (1, 7, 6, 5, 4, 3)] + ["10.png", "9.png"]
    assert "Reals called fake: the 6 of 8 with the highest scores" in shown.picture.value
    assert "Fakes called real: all" in shown.picture.value
    read.clear()
    shown.threshold.value = max(value for _, value in shown.threshold.options)
    assert read == ["10.png", "9.png", HOSTILE]
    assert "&lt;img src=x" in shown.picture.value and HOSTILE not in shown.picture.value
    shown.threshold.value = 0.0
    assert len(read) == 3  # what was shown before is not read again


def test_several_scores_can_be_compared() -> None:
    labels = np.arange(40) % 2
    good, flat = labels * 4.0 - 2 + np.linspace(0, 0.1, 40), np.linspace(5, 6, 40)
    shown = widgets.ThresholdBoard({"status_quo": (labels, flat), "bce_only": (labels, good)})
    assert shown.now.accuracy == 0.5
    shown.of.value = "bce_only"
    assert shown.now.accuracy == 1.0
    assert "called fake; accuracy 1.00" in shown.picture.value
