"""The two errors that the command line prints without a traceback, and how they quote."""


class UserError(Exception):
    """Something from outside is wrong: a file, an option, a data set. Exit code 2.

    The message is one sentence that names the file or option, says what is wrong and what to do.
    """


class CheckError(Exception):
    """A check on our own result failed, so nothing was written or replaced. Exit code 1."""


def brief(text: object, limit: int = 100) -> str:
    """Quote what a file holds: on one line, of `limit` characters at most, the middle left out."""
    words = " ".join(str(text).split())
    words = "".join(letter if letter.isprintable() else "?" for letter in words)
    if len(words) <= limit:
        return words
    half = (limit - 3) // 2
    return f"{words[:half]}...{words[-half:]}"


def first_line(error: BaseException, limit: int = 120) -> str:
    """Quote an error of a library: its first line without the full stop, or the error's class."""
    lines = str(error).strip().splitlines()
    return (lines[0][:limit].rstrip(".:; ") if lines else "") or type(error).__name__
