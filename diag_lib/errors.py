"""What went wrong, in one line the user can act on."""

MAX_LENGTH = 2_000  # a message quotes the user's file, which may have lines of megabytes


class UserError(Exception):
    """A mistake in the user's input; the message is one line that says what to change.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= MAX_LENGTH else f"{line[:MAX_LENGTH]} ...")

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook: the line alone."""
        return [f"{type(self).__name__}: {self}"]
