"""The notebooks in a real JupyterLab and browser: no errors, controls that work by keyboard, names that stay text."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from steps_data import tiny_settings, write_images, write_teacher

from diag_lib import resources
from diag_lib.lab import lab_command, lab_environment
from diag_lib.settings import load

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHROMIUM = [Path("/usr/bin") / name for name in ("chromium", "chromium-browser", "google-chrome")]
HOSTILE = "<img src=x onerror=window.hacked=1>.png"
TOKEN = "test-token"  # this server lives for one test, on this machine
NOTEBOOKS = sorted(path.name for path in resources.notebooks_dir().glob("*.ipynb"))
PATIENCE = 240  # seconds for one notebook on a busy machine

CELLS = """() => jupyterapp.shell.currentWidget.content.widgets.filter(cell => cell.model.type === 'code')
    .map(cell => ({id: cell.model.id, count: cell.model.executionCount, outputs: cell.model.outputs.toJSON()}))"""
SHOW = """id => { const notebook = jupyterapp.shell.currentWidget.content;
    const place = notebook.widgets.findIndex(cell => cell.model.id === id);
    notebook.activeCellIndex = place; return notebook.scrollToItem(place, 'start').then(() => place); }"""
READY = """() => { const panel = window.jupyterapp?.shell.currentWidget;
    return panel?.context?.isReady && panel.sessionContext.session?.kernel?.status === 'idle'; }"""


def _missing() -> str:
    try:
        import jupyterlab  # noqa: F401
        import playwright.sync_api  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed"
    return (
        "" if any(path.exists() for path in CHROMIUM) else f"none of {', '.join(map(str, CHROMIUM))} exists"
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    reason = _missing()
    if reason:
        text = f"THE NOTEBOOKS WERE NOT RUN IN A BROWSER: {reason}"
        (pytest.fail if os.environ.get("DIAG_REQUIRE_BROWSER") == "1" else pytest.skip)(text)
    from playwright.sync_api import sync_playwright

    path = next(path for path in CHROMIUM if path.exists())
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=str(path), args=["--no-sandbox"])
        yield chromium
        chromium.close()


LONG = 5000  # epochs: nobody waits for them
LEAKED = Path("data/val/fake/<img src=x onerror=window.hacked=2>.png")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dataset with a hostile file name, and copies of the notebooks whose parameters name it."""
    tmp = tmp_path_factory.mktemp("lab")
    write_images(tmp / "data", train=24, val=24)
    write_teacher(tmp / "teacher.safetensors")
    Image.open(tmp / "data/val/fake/0030.png").transpose(Image.Transpose.ROTATE_90).save(
        tmp / "data/val/real" / HOSTILE
    )
    (tmp / LEAKED).write_bytes((tmp / "data/train/fake/0024.png").read_bytes())
    settings = tiny_settings(tmp, training__epochs_s2=2, runtime__budget="quick")
    (tmp / "settings.yaml").write_text(settings.to_yaml(), encoding="utf-8")
    (tmp / "notebooks").mkdir()
    parameters = f"config = {str(tmp / 'settings.yaml')!r}\nrun_dir = {str(tmp / 'run')!r}\noverrides = {{}}"
    for name in NOTEBOOKS:
        notebook = json.loads((resources.notebooks_dir() / name).read_text(encoding="utf-8"))
        (cell,) = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
        cell["source"] = parameters
        (tmp / "notebooks" / name).write_text(json.dumps(notebook), encoding="utf-8")
        if name.startswith("00"):
            more = {"training.epochs_s2": LONG, "training.batch_size": 2, "runtime.budget": "full"}
            cell["source"] = parameters.replace("/run'", "/long'").replace("{}", repr(more))
            (tmp / "notebooks" / "long.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    return tmp


@pytest.fixture(scope="module")
def lab(work: Path, browser: Any) -> Iterator[str]:
    """The address of a JupyterLab started by the product's own command line."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    extra = [
        "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    homes = {f"JUPYTER_{kind}_DIR": str(work / "jupyter" / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**lab_environment(), **homes, "IPYTHONDIR": str(work / "ipython"), "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "MPLBACKEND": ""}
    environment.pop("DIAG_STATIC", None)
    log = work / "lab.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            lab_command(work / "notebooks", extra), stdout=stream, stderr=stream,
            env=environment, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api/status?token={TOKEN}", server, log)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
        shutil.rmtree(work / "jupyter", ignore_errors=True)


def _wait_for(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-3000:]}")


class Opened:
    """One notebook, run from top to bottom in one page."""

    def __init__(self, page: Any, lab: str, name: str, wait: bool = True) -> None:
        self.page, self.outside = page, []
        self.script_errors: list[str] = []
        page.on("request", lambda request: self._note(request.url, lab))
        page.on("pageerror", lambda error: self.script_errors.append(str(error)))
        page.on("console", lambda said: said.type == "error" and self.script_errors.append(said.text))
        page.goto(f"{lab}/lab/tree/{name}?reset&token={TOKEN}")
        page.wait_for_function(READY, timeout=PATIENCE * 1000)
        page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells'); }")
        self.cells: list[dict[str, Any]] = []
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until every cell has run, or one failed."""
        page = self.page
        deadline = time.monotonic() + PATIENCE
        while True:
            self.cells = page.evaluate(CELLS)
            if all(cell["count"] for cell in self.cells) or self.errors or time.monotonic() > deadline:
                break
            page.wait_for_timeout(300)

    def _note(self, url: str, lab: str) -> None:
        if not url.startswith((lab, "data:", "blob:")):
            self.outside.append(url)

    @property
    def errors(self) -> list[str]:
        """What went wrong, a line a cell."""
        outputs = [(cell["id"], out) for cell in self.cells for out in cell["outputs"]]
        return [
            f"{name}: {out['ename']}: {out['evalue']}"
            for name, out in outputs
            if out["output_type"] == "error"
        ]

    def below(self, cell: str) -> None:
        """Run the cell and all below it, from the menu's command."""
        self.page.evaluate(SHOW, cell)
        self.page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-below')")
        self.wait()

    def place(self, cell: str) -> Any:
        """The outputs of a cell, scrolled to and in front."""
        self.page.bring_to_front()
        return self.page.locator(f".jp-Cell[data-windowed-list-index='{self.page.evaluate(SHOW, cell)}']")

    def board(self, cell: str) -> "Shown":
        """The board in a cell, scrolled to, in front and at rest: a page behind another draws nothing."""
        self.page.bring_to_front()
        place = f".jp-Cell[data-windowed-list-index='{self.page.evaluate(SHOW, cell)}'] .jp-OutputArea-output"
        self.page.wait_for_selector(f"{place} .widget-html img", timeout=60_000)
        shown = Shown(self.page, self.page.locator(place).first)
        shown.settled()
        return shown

    def shoot(self, name: str) -> None:
        """Keep a picture of the page where DIAG_SCREENSHOTS says."""
        if os.environ.get("DIAG_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(os.environ["DIAG_SCREENSHOTS"]) / f"{name}.png"))


class Shown:
    """A board in the page: its controls by their labels, its picture, its text."""

    SLIDERS = ".widget-inline-hbox:has(.noUi-target:not([disabled]))"

    def __init__(self, page: Any, place: Any) -> None:
        self.page, self.place = page, place

    def slider(self, label: str) -> Any:
        """The handle of the slider beside the label."""
        row = self.place.locator(".widget-inline-hbox", has=self.page.locator(f"label:text-is('{label}')"))
        return row.locator(".noUi-handle")

    def button(self, name: str) -> Any:
        """The button with that text."""
        return self.place.get_by_role("button", name=name, exact=True)

    @property
    def content(self) -> str:
        return str(self.place.locator(".widget-html").inner_html())

    @property
    def picture(self) -> str:
        return str(self.place.locator(".widget-html img").first.get_attribute("src"))

    @property
    def text(self) -> str:
        return str(self.place.locator(".widget-html").inner_text())

    @property
    def height(self) -> float:
        return float(self.place.bounding_box()["height"])

    def after(self, change: Any) -> str:
        """Do it, wait until the board shows something else and rests, return the text."""
        before = self.content
        change()
        self.page.wait_for_function(
            """([node, before]) => node.querySelector('.widget-html').innerHTML !== before""",
            arg=[self.place.element_handle(), before],
            timeout=30_000,
        )
        return self.settled()

    def drive(self) -> "Driven":
        """Move every control by its keys: each button of every row, each slider as soon as it can be moved."""
        driven = Driven(self)
        driven.sliders()
        rows = self.place.locator(".widget-toggle-buttons")
        for row in range(rows.count()):
            buttons = rows.nth(row).locator("button")
            for number in [*range(1, buttons.count()), 0]:
                button = buttons.nth(number)
                if "mod-active" not in str(button.get_attribute("class")):
                    name = f"{rows.nth(row).locator('label').inner_text()}: {button.inner_text()}"
                    button.focus()
                    driven.press(name, "Space")
                    assert "mod-active" in str(button.get_attribute("class")), name
                    driven.sliders()
        return driven

    def settled(self) -> str:
        """The text once the board has stopped changing and its picture is drawn: a redraw may come in several parts."""
        picture = self.place.locator(".widget-html img").first
        for _ in range(40):
            seen = self.content
            self.page.wait_for_timeout(500)
            if self.content == seen and picture.evaluate("image => image.complete && image.clientHeight > 0"):
                break
        return self.text


class Driven:
    """What was moved, which of it changed nothing, and how much higher or lower the board became at most."""

    def __init__(self, board: Shown) -> None:
        self.board, self.height = board, board.height
        self.moved: list[str] = []
        self.idle: list[str] = []
        self.jump = 0.0

    def press(self, name: str, key: str) -> None:
        before = self.board.content
        self.board.page.keyboard.press(key)
        for _ in range(40):
            self.board.page.wait_for_timeout(250)
            if self.board.content != before:
                break
        self.board.settled()
        self.moved.append(name)
        if self.board.content == before:
            self.idle.append(name)
        self.jump = max(self.jump, abs(self.board.height - self.height))

    def sliders(self) -> None:
        """Those that can be moved now and were not yet, a step to the right, or from the end to the left."""
        rows = self.board.place.locator(Shown.SLIDERS)
        for row in range(rows.count()):
            name = rows.nth(row).locator("label").inner_text()
            if name not in self.moved:
                handle = rows.nth(row).locator(".noUi-handle")
                handle.focus()
                last = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
                self.press(name, "ArrowLeft" if last else "ArrowRight")


BOARDS = {
    ("02_teacher.ipynb", "teacher-threshold"): ["threshold"],
    ("02_teacher.ipynb", "teacher-browser"): ["picture", "row", "column", "show", "order"],
    ("03_logits.ipynb", "logits-balance"): ["alpha_distill", "temperature", "normalize", "loss", "student"],
    ("03_logits.ipynb", "logits-browser"): ["picture", "row", "column", "show", "order"],
    ("05_distillation.ipynb", "distillation-threshold"): ["threshold", "scores of"],
    ("05_distillation.ipynb", "distillation-arms"): ["first arm", "second arm"],
}


@pytest.fixture(scope="module")
def pages(browser: Any, lab: str) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1440, "height": 1100})
    known: dict[str, Opened] = {}

    def opened(name: str) -> Opened:
        if name not in known:
            known[name] = Opened(context.new_page(), lab, name)
        return known[name]

    yield opened
    context.close()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_from_top_to_bottom(pages: Any, name: str) -> None:
    shown = pages(name)
    assert shown.errors == []
    assert "Jupyter news" not in shown.page.inner_text("body")  # no question that leads outside
    assert [cell["id"] for cell in shown.cells if not cell["count"]] == []
    assert [url for url in shown.outside if url.startswith("http")] == []
    assert shown.page.evaluate("window.hacked") is None


def test_the_balance_board_answers_the_keyboard(pages: Any) -> None:
    opened = pages("03_logits.ipynb")
    board = opened.board("logits-balance")
    opened.shoot("balance_start")
    assert "Your settings" in board.text
    height = board.height
    shares, first = [_share(board.text)], board.picture
    for key in ("ArrowLeft", "ArrowLeft", "ArrowLeft"):
        board.slider("alpha_distill").focus()
        shares.append(_share(board.after(lambda key=key: opened.page.keyboard.press(key))))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]
    assert board.picture != first

    board.button("standardize").focus()
    assert "standardize keeps the image means" in board.after(lambda: opened.page.keyboard.press("Space"))
    for key in ("Tab", "Tab", "Tab"):  # robust, batch, layer
        opened.page.keyboard.press(key)
    assert "erases the image mean" in board.after(lambda: opened.page.keyboard.press("Enter"))
    opened.shoot("balance_layer")
    assert abs(board.height - height) < 40  # a line of text more or less, no jump


def test_the_settings_panel_checks_as_typed_and_the_cells_below_follow(pages: Any, work: Path) -> None:
    opened = pages("06_verdict.ipynb")
    panel = opened.place("settings")
    opened.shoot("panel")
    height = panel.bounding_box()["height"]
    field = panel.get_by_label("teacher.arch", exact=True)
    field.focus()
    opened.page.keyboard.press("End")
    opened.page.keyboard.type("9")
    panel.get_by_text("teacher.arch: 'tiny_ladeda9' is not allowed").wait_for(timeout=30_000)
    opened.shoot("panel_wrong")
    use = panel.get_by_role("button", name="Use these settings")
    use.focus()
    opened.page.keyboard.press("Enter")  # what is wrong is not taken
    opened.page.wait_for_timeout(500)
    assert not (work / "run" / "panel.json").exists()
    field.focus()
    opened.page.keyboard.press("End")
    opened.page.keyboard.press("Backspace")
    panel.get_by_role("button", name="standard", exact=True).focus()
    opened.page.keyboard.press("Space")
    panel.get_by_text("Not in use yet").wait_for(timeout=30_000)
    use.focus()
    opened.page.keyboard.press("Enter")
    panel.get_by_text("runtime.budget = standard.").wait_for(timeout=30_000)
    opened.shoot("panel_used")
    assert panel.bounding_box()["height"] == height  # nothing jumps
    assert load(work / "run" / "settings.yaml").runtime.budget == "quick"
    opened.below("verdict-02")
    assert opened.errors == []
    assert load(work / "run" / "settings.yaml").runtime.budget == "standard"
    opened.place("settings").get_by_role("button", name="Back to the parameters").click()
    opened.place("settings").get_by_text("settings of the parameters cell").wait_for(timeout=30_000)
    assert json.loads((work / "run" / "panel.json").read_text()) == {}


def test_every_field_of_the_panel_is_checked_as_it_is_typed(pages: Any) -> None:
    opened = pages("06_verdict.ipynb")
    panel = opened.place("settings")
    height = panel.bounding_box()["height"]
    wrong = {
        "dataset.root": "/nowhere", "teacher.arch": "ladeda8", "teacher.weights": "nowhere.safetensors",
        "student.arch": "ladeda8",
    }  # fmt: skip
    for key, text in wrong.items():
        field = panel.get_by_label(key, exact=True)
        own = field.input_value()
        field.focus()
        opened.page.keyboard.press("Control+A")
        opened.page.keyboard.type(text)
        panel.get_by_text(re.compile("Not possible|Not in use yet")).wait_for(timeout=30_000)
        assert panel.bounding_box()["height"] == height, key
        opened.page.keyboard.press("Control+A")
        opened.page.keyboard.type(own)
        panel.get_by_text("settings of the parameters cell").wait_for(timeout=30_000)
    for name in ("raw", "left_diag", "standard", "full"):
        button = panel.get_by_role("button", name=name, exact=True)
        button.focus()
        opened.page.keyboard.press("Space")
        panel.get_by_text("Not in use yet").wait_for(timeout=30_000)
        assert "mod-active" in str(button.get_attribute("class"))
        assert panel.bounding_box()["height"] == height, name
    back = panel.get_by_role("button", name="Back to the parameters")
    back.press(
        "Enter"
    )  # focus and key in one: a check that is still under way may draw the panel anew between them
    panel.get_by_text("settings of the parameters cell").wait_for(timeout=60_000)
    assert opened.script_errors == []


def test_hostile_settings_are_shown_as_text(pages: Any) -> None:
    opened = pages("06_verdict.ipynb")
    panel = opened.place("settings")
    panel.get_by_label("dataset.root", exact=True).fill(HOSTILE)
    panel.get_by_text("does not exist").wait_for(timeout=30_000)
    assert HOSTILE in panel.inner_text()
    assert opened.page.evaluate("window.hacked") is None
    panel.get_by_role("button", name="Back to the parameters").click()


def _share(text: str) -> float:
    found = re.search(
        r"takes ([\d.]+)% of the loss", text.replace("more than ", "").replace("less than ", "")
    )
    assert found, text
    return float(found[1])


def test_the_heat_map_browser_answers_the_keyboard(pages: Any) -> None:
    opened = pages("03_logits.ipynb")
    board = opened.board("logits-browser")
    opened.shoot("browser_start")
    assert "1 of 50" in board.text
    height = board.height
    board.button("Next").focus()
    assert "2 of 50" in board.after(lambda: opened.page.keyboard.press("Enter"))
    assert "3 of 50" in board.after(lambda: opened.page.keyboard.press("Enter"))  # the focus stayed
    board.slider("row").focus()
    before = _patch(board.text)
    board.after(lambda: opened.page.keyboard.press("ArrowRight"))
    assert _patch(board.text)[0] == before[0] + 1
    board.button("only fake").focus()
    assert "1 of 25" in board.after(lambda: opened.page.keyboard.press("Space"))
    assert board.height == height  # nothing jumps
    opened.shoot("browser_fake")


@pytest.mark.parametrize(
    ("name", "cell"),
    [("02_teacher.ipynb", "teacher-threshold"), ("05_distillation.ipynb", "distillation-threshold")],
)
def test_the_threshold_answers_the_keyboard(pages: Any, name: str, cell: str) -> None:
    opened = pages(name)
    board = opened.board(cell)
    opened.shoot(cell)
    first, height = board.picture, board.height
    board.slider("threshold").focus()
    board.after(lambda: opened.page.keyboard.press("ArrowRight"))
    assert board.picture != first
    assert board.height == height
    assert "Reals called fake:" in board.text and "Fakes called real:" in board.text


def test_the_arm_comparison_answers_the_keyboard(pages: Any) -> None:
    opened = pages("05_distillation.ipynb")
    board = opened.board("distillation-arms")
    opened.shoot("distillation-arms")
    for row, arm in (
        (1, "standardized"),
        (0, "bce_only"),
    ):  # the row of the second arm, then that of the first
        board.button(arm).nth(row).focus()
        board.after(lambda: opened.page.keyboard.press("Space"))
    assert "standardized against bce_only" in board.text
    assert "first: bce_only" in board.text and "second: standardized" in board.text


def test_the_gallery_writes_decisions_and_leaves_the_data_alone(pages: Any, work: Path) -> None:
    opened = pages("01_audit.ipynb")
    opened.page.bring_to_front()
    index = opened.page.evaluate(SHOW, "curation")
    place = opened.page.locator(f".jp-Cell[data-windowed-list-index='{index}'] .jp-OutputArea-output").first
    place.get_by_role("button", name=re.compile(r"^leaked \(\d+\)")).click()
    tile = place.locator(".widget-vbox", has=opened.page.get_by_text(f"{LEAKED.name} (")).last
    tile.wait_for(timeout=60_000)
    before = {path: path.read_bytes() for path in (work / "data").rglob("*.png")}
    tile.get_by_role("button", name="exclude", exact=True).focus()
    opened.page.keyboard.press("Enter")
    place.get_by_text("1 to exclude, 0 to relabel").wait_for(timeout=30_000)
    place.get_by_role("button", name="Save curation.csv").focus()
    opened.page.keyboard.press("Enter")
    place.get_by_text("Saved.").wait_for(timeout=30_000)
    opened.shoot("curation")
    rows = (work / "run" / "curation.csv").read_text(encoding="utf-8").splitlines()
    assert opened.page.evaluate("window.hacked") is None  # the name of the leaked picture is a tag
    assert rows == ["path,action,label", f"{LEAKED.relative_to('data').as_posix()},exclude,"]
    assert before == {path: path.read_bytes() for path in (work / "data").rglob("*.png")}
    assert not list((work / "data").rglob("*.csv"))


# It leaves every control somewhere else: after the tests that begin with a board as it opens.
@pytest.mark.parametrize(("name", "cell"), list(BOARDS))
def test_every_control_of_every_board_answers_its_keys(pages: Any, name: str, cell: str) -> None:
    opened = pages(name)
    board = opened.board(cell)
    driven = board.drive()
    opened.shoot(f"driven-{cell}")
    assert {moved.split(":")[0] for moved in driven.moved} == set(BOARDS[name, cell])
    assert driven.idle == []
    assert driven.jump == 0
    assert opened.script_errors == []
    assert opened.page.evaluate("window.hacked") is None


def test_every_control_of_the_gallery_answers_its_keys(pages: Any) -> None:
    opened = pages("01_audit.ipynb")
    place = opened.place("curation").locator(".jp-OutputArea-output").first
    height = place.bounding_box()["height"]
    issues = place.locator(".widget-toggle-buttons").first.locator("button")

    def press(button: Any, key: str, then: str | re.Pattern[str]) -> None:
        button.focus()
        opened.page.keyboard.press(key)
        place.get_by_text(then).first.wait_for(timeout=30_000)
        assert abs(place.bounding_box()["height"] - height) <= 0

    for number in [*range(issues.count()), 0]:
        name = issues.nth(number).inner_text().rpartition(" (")[0]
        press(issues.nth(number), "Space", f"{name}, page 1 of")
    pages_of = int(
        place.get_by_text(re.compile("page 1 of")).inner_text().split("page 1 of ")[1].split(".")[0]
    )
    press(place.get_by_role("button", name="Next"), "Enter", f"page {min(2, pages_of)} of {pages_of}")
    press(place.get_by_role("button", name="Previous"), "Enter", f"page 1 of {pages_of}")
    keep, exclude, relabel = (
        place.get_by_role("button", name=name, exact=True).first for name in ("keep", "exclude", "relabel")
    )
    press(relabel, "Space", "1 to relabel")
    press(keep, "Space", "0 to relabel")
    press(exclude, "Space", re.compile("[1-9][0-9]* to exclude"))
    press(
        place.get_by_role("button", name=re.compile("^Exclude all")),
        "Enter",
        re.compile("[1-9][0-9]* to exclude"),
    )
    opened.shoot("gallery_driven")
    assert opened.script_errors == []


def _epochs(work: Path) -> list[float]:
    """The training loss of every whole epoch of the long training so far."""
    for path in (work / "long/artifacts/arms").glob("*/checkpoint.pt"):
        state = json.loads(torch.load(path, weights_only=True)["json"])
        return list(state["history"]["train_loss"])
    return []


def _until_epochs(opened: Opened, work: Path, least: int) -> None:
    for _ in range(PATIENCE * 2):
        if len(_epochs(work)) >= least:
            return
        opened.page.wait_for_timeout(500)
    pytest.fail(f"less than {least} epochs: {opened.page.evaluate(CELLS)}")


def test_stop_keeps_whole_epochs_and_running_again_goes_on(browser: Any, lab: str, work: Path) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 1100})
    opened = Opened(page, lab, "long.ipynb", wait=False)
    stop = opened.place("symptoms-02").get_by_role("button", name="Stop")
    stop.wait_for(timeout=PATIENCE * 1000)
    _until_epochs(opened, work, 3)
    opened.shoot("stop")
    stop.focus()
    page.keyboard.press("Enter")
    before = len(_epochs(work))
    page.get_by_text("begun training up to the last whole epoch").wait_for(timeout=30_000)
    stop.wait_for(state="detached", timeout=30_000)
    opened.shoot("stopped")
    kept = _epochs(work)
    assert before <= len(kept) < LONG / 10
    cells = page.evaluate(CELLS)
    assert [out for cell in cells for out in cell["outputs"] if out.get("traceback")] == []
    at = [cell["id"] for cell in cells].index("symptoms-02")
    assert [cell["id"] for cell in cells[at + 1 :] if cell["count"]] == []  # the cells below wait

    page.evaluate(SHOW, "symptoms-02")
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-cell'); }")
    _until_epochs(opened, work, len(kept) + 2)
    assert _epochs(work)[: len(kept)] == kept  # it went on, and did not begin again
    opened.place("symptoms-02").locator(".jp-InputPrompt").click()  # command mode
    page.keyboard.press("i")  # JupyterLab's own way, for kernels that hear no click
    page.keyboard.press("i")
    page.get_by_text("begun training up to the last whole epoch").wait_for(timeout=30_000)
    more = _epochs(work)
    assert more[: len(kept)] == kept
    assert len(kept) + 2 <= len(more) < LONG
    page.close()


def _patch(text: str) -> tuple[int, int]:
    found = re.search(r"Patch at row (\d+), column (\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


def test_hostile_file_names_are_shown_as_text(pages: Any) -> None:
    for name, cell in (("03_logits.ipynb", "logits-browser"), ("02_teacher.ipynb", "teacher-browser")):
        opened = pages(name)
        board = opened.board(cell)
        board.after(board.button("only real").click)
        board.after(board.button("as listed").click)
        assert HOSTILE in board.after(board.button("Previous").click)  # round to the last name
        opened.shoot(f"hostile_{name[:2]}")
        assert board.place.locator(".widget-html img").count() == 1
        assert opened.page.evaluate("window.hacked") is None
