"""What went wrong, in one line the user can act on."""


class UserError(Exception):
    """A mistake in the user's input; the message is one line that says what to change.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook: the line alone."""
        return [f"{type(self).__name__}: {self}"]
