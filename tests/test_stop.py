"""The stop button in a real kernel: it stops work where clicks arrive in time, and stays hidden where they do not."""

import os
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from diag_lib.widgets import StopButton, stop_button

PATIENCE = 60.0
WORK = """
import time
from diag_lib import live, widgets
live.end_well_when_stopped(lambda: "kept")
stop = widgets.stop_button()
epochs = []
while len(epochs) < {epochs}:
    time.sleep(0.05)
    epochs.append(stop.heard)
"""


class Front:
    """What a front end does: run a cell, open a subshell, send what a widget's view would send."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self.client = client

    def run(self, code: str) -> str:
        self.client.execute("from diag_lib import widgets", reply=True, timeout=PATIENCE)
        return str(self.client.execute(code, allow_stdin=True))

    def until(self, found: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next message that is it."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            message: dict[str, Any] = self.client.get_iopub_msg(timeout=PATIENCE)
            if found(message):
                return message
        raise TimeoutError

    def button(self) -> str:
        """The model of the button that the cell shows, once it stands in a displayed view."""

        def opened(message: dict[str, Any]) -> bool:
            state = message["content"].get("data", {}).get("state", {}) if message["content"] else {}
            return message["msg_type"] == "comm_open" and state.get("_model_name") == "ButtonModel"

        return str(self.until(opened)["content"]["comm_id"])

    def subshell(self) -> str:
        client = self.client
        client.control_channel.send(client.session.msg("create_subshell_request"))
        reply = client.get_control_msg(timeout=PATIENCE)
        return str(reply["content"]["subshell_id"])

    def send(self, model: str, data: dict[str, Any], subshell: str | None) -> None:
        message = self.client.session.msg("comm_msg", {"comm_id": model, "data": data})
        if subshell is not None:
            message["header"]["subshell_id"] = subshell
        self.client.shell_channel.send(message)

    def drawn(self, model: str, subshell: str | None) -> None:
        self.send(model, {"method": "update", "state": {"_view_count": 1}, "buffer_paths": []}, subshell)

    def click(self, model: str, subshell: str | None) -> None:
        self.send(model, {"method": "custom", "content": {"event": "click"}}, subshell)

    def reply(self, cell: str) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = self.client.get_shell_msg(timeout=PATIENCE)
            if message["parent_header"].get("msg_id") == cell:
                return dict(message["content"])

    def value(self, expression: str) -> str:
        cell = self.client.execute("pass", user_expressions={"it": expression})
        return str(self.reply(cell)["user_expressions"]["it"]["data"]["text/plain"])

    def rest(self) -> list[dict[str, Any]]:
        """All that was published and not read yet."""
        found = []
        while True:
            try:
                found.append(self.client.get_iopub_msg(timeout=1))
            except queue.Empty:
                return found


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    root = str(Path(__file__).resolve().parents[1])
    environment = {
        **os.environ, "IPYTHONDIR": str(tmp_path_factory.mktemp("ipython")),
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),
    }  # fmt: skip
    environment.pop("DIAG_STATIC", None)
    manager, client = start_new_kernel(startup_timeout=PATIENCE, env=environment)
    yield Front(client)
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def _subshells(front: Front) -> bool:
    return front.value("bool(getattr(get_ipython().kernel, '_supports_kernel_subshells', False))") == "True"


def test_a_click_on_a_subshell_stops_the_cell(front: Front) -> None:
    if not _subshells(front):
        pytest.skip("this ipykernel has no subshells")
    cell = front.run(WORK.format(epochs=600))
    button, subshell = front.button(), front.subshell()
    front.drawn(button, subshell)
    front.until(
        lambda m: m["msg_type"] == "comm_msg" and "What is done is kept" in str(m["content"]["data"])
    )  # fmt: skip
    time.sleep(1)  # some epochs
    pressed = time.monotonic()
    front.click(button, subshell)
    front.click(button, subshell)  # a double click is one stop
    assert front.reply(cell)["status"] == "error"
    assert time.monotonic() - pressed < 15  # the work alone takes 30 s
    said = front.rest()
    assert "kept" in str([m["content"] for m in said if m["msg_type"] in ("display_data", "execute_result")])
    assert not [m for m in said if m["msg_type"] == "error" and m["content"]["traceback"]]
    assert [m["content"]["data"]["text/html"] for m in said if m["msg_type"] == "update_display_data"] == [""]
    kept = int(front.value("len(epochs)"))
    assert 0 < kept < 600
    assert front.value("stop.heard") == "True"
    front.click(button, subshell)  # too late: no work to stop
    assert front.value("1 + 1") == "2"


def test_it_stays_hidden_where_clicks_wait_for_the_end(front: Front) -> None:
    cell = front.run(WORK.format(epochs=20))
    front.drawn(front.button(), None)  # as a front end without subshells sends it
    assert front.reply(cell)["status"] == "ok"
    said = front.rest()
    assert front.value("(len(epochs), any(epochs), stop.heard)") == "(20, False, False)"
    shown = [m for m in said if m["msg_type"] == "comm_msg" and "What is done" in str(m["content"]["data"])]
    assert shown == []


def test_the_line_says_another_way_at_first() -> None:
    made = StopButton()
    assert made.button.layout.display == "none"
    assert "■ in the toolbar" in made.line.value


def test_no_button_outside_a_notebook() -> None:
    assert stop_button() is None
