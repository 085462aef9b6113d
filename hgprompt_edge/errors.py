"""The two errors that the command line prints without a traceback."""


class UserError(Exception):
    """Something from outside is wrong: a file, an option, a data set. Exit code 2.

    The message is one sentence that names the file or option, says what is wrong and what to do.
    """


class CheckError(Exception):
    """A check on our own result failed, so nothing was written or replaced. Exit code 1."""
