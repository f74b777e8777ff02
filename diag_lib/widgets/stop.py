"""How do I stop this and keep what is done? A button beside the progress, where its click arrives in time.

A kernel that works hears of a click only on a subshell, a second thread for messages of widgets (ipykernel 7 and
later, in front ends that use it, as JupyterLab 4.5 does). Whether that is so is not guessed from versions: the
button tells the kernel that it was drawn, and stays hidden unless this is heard while the cell still runs.
"""

import os
import signal
import threading
import time
from typing import Any

import ipywidgets as ipw
from IPython.display import HTML, display

from diag_lib import live

AGAIN_SECONDS = 3.0
"""A double click is one stop; who presses again later means it."""
BY_TOOLBAR = "To stop: ■ in the toolbar. What is done is kept; running the cell again goes on."
BY_BUTTON = "What is done is kept; running the cell again goes on."
STOPPING = "Stopping …"


class StopButton:
    """`view` is the button and the line beside it; `heard` turns true once a click would arrive in time."""

    def __init__(self) -> None:
        self.heard = False
        self._working, self._pressed = True, -AGAIN_SECONDS
        self.button = ipw.Button(
            description="Stop", icon="stop", tooltip="Stop this cell; what is done is kept",
            layout=ipw.Layout(width="auto", display="none"), _view_count=0,
        )  # fmt: skip
        self.line = ipw.HTML(BY_TOOLBAR)
        self.view = ipw.HBox(
            [self.button, self.line], layout=ipw.Layout(min_height="36px", align_items="center")
        )
        self.button.observe(self._drawn, names="_view_count")
        self.button.on_click(lambda _: self.press())
        # ipykernel 7.4 sends a widget's messages to the thread that wrote to it last, which is the busy one; without
        # this note of its they go where the front end sends them.
        vars(self.button.comm).pop("_reply_subshell_id", None)

    def press(self) -> None:
        """Interrupt the cell, as the front end's own button does."""
        now = time.monotonic()
        if self._working and now - self._pressed >= AGAIN_SECONDS:
            self._pressed, self.line.value = now, STOPPING
            _interrupt()

    def over(self) -> None:
        """The cell has ended: nothing can be stopped any more."""
        self._working = False

    def _drawn(self, change: Any) -> None:
        """Heard in time on a subshell only; on the main thread this comes after the work."""
        if self._working and threading.current_thread() is not threading.main_thread():
            self.heard = True
            self.line.value, self.button.layout.display = BY_BUTTON, ""


def stop_button() -> StopButton | None:
    """Display one that goes away with the end of this cell; None where nobody sits at this kernel."""
    shell = live.kernel_shell()
    if shell is None or not live.live():
        return None
    made = StopButton()
    shown: Any = display(made.view, display_id=True)  # type: ignore[no-untyped-call,unused-ignore]

    def ended(result: Any) -> None:
        shell.events.unregister("post_run_cell", ended)
        made.over()
        shown.update(HTML(""))  # type: ignore[no-untyped-call,unused-ignore]
        for widget in (made.view, made.button, made.line):
            widget.close()

    shell.events.register("post_run_cell", ended)
    return made


def _interrupt() -> None:
    """SIGINT to this kernel and to the processes that it started, which are its group where it leads one."""
    if os.name != "posix":
        signal.raise_signal(signal.SIGINT)
    elif os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGINT)
    else:
        os.kill(os.getpid(), signal.SIGINT)
