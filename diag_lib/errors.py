"""What went wrong, in one line the user can act on."""


class UserError(Exception):
    """A mistake in the user's input; the message is one line that says what to change.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
