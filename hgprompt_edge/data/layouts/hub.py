"""Data sets of the Hugging Face hub, `hf:ORG/NAME`: their parquet files, in the hub's cache."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from hgprompt_edge.data.layouts.parquet import SPLIT_WORDS
from hgprompt_edge.errors import MissingPackageError, ParameterError, argument, first_line

PREFIX = "hf:"
CONVERTED = "refs/convert/parquet"
"""The branch on which the hub keeps what it converted to parquet."""


def is_hub_id(data: Path) -> bool:
    """Whether `data` names a data set of the hub rather than a file or folder."""
    return data.as_posix().startswith(PREFIX)


def fetch_parquet(data: Path) -> Path:
    """Fetch the parquet files of `hf:ORG/NAME` or `hf:ORG/NAME/FOLDER`; the folder they lie in.

    A data set without parquet files of its own has them on the branch of the hub's conversion.
    Files of other configurations are not fetched.

    Raises
    ------
    UserError
        Not such an id; no huggingface_hub; the hub does not answer or has no such data set; no
        parquet files, or several configurations, one of which has to be named.
    """
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)", data.as_posix()[len(PREFIX) :])
    if found is None:
        raise ParameterError("data", data, "not the id of a data set; write hf:ORG/NAME")
    repository, folder = found[1], PurePosixPath(found[2].strip("/"))
    for revision in (None, CONVERTED):
        with _answering(data):
            files = _list(repository, revision)
        configurations = {
            _configuration(file, folder) for file in files if file.is_relative_to(folder)
        }
        if configurations:
            chosen = _choose(data, repository, folder, configurations)
            with _answering(data):
                root = _fetch(repository, chosen, revision)
            return root / (folder if chosen in _usual(folder) else chosen)
    raise ParameterError(
        "data",
        data,
        "the data set has no parquet files there; download it and name the local folder with "
        "`data`",
    )


def _configuration(file: PurePosixPath, folder: PurePosixPath) -> PurePosixPath:
    """Return the folder of a configuration: the file's own, or the one above that of its split."""
    found = file.parent
    return found.parent if found != folder and found.name.lower() in SPLIT_WORDS else found


def _usual(folder: PurePosixPath) -> tuple[PurePosixPath, ...]:
    """Return where `parquet_files` looks for the one configuration of `folder`."""
    return folder, folder / "data", folder / "default"


def _choose(
    data: Path, repository: str, folder: PurePosixPath, configurations: Collection[PurePosixPath]
) -> PurePosixPath:
    for usual in _usual(folder):
        if usual in configurations:
            return usual
    # What lies below a configuration is a split that is not read, such as extra.
    outer = sorted(path for path in configurations if path.parent not in configurations)
    if len(outer) > 1:
        names = [path.as_posix() for path in outer]
        raise ParameterError(
            "data",
            data,
            f"the data set has several configurations ({', '.join(names[:5])}); name one, as in "
            f"hf:{repository}/{names[0]}",
        )
    return outer[0]


@contextmanager
def _answering(data: Path) -> Iterator[None]:
    """Say in one sentence why the hub did not answer, or what is missing to ask it."""
    try:
        yield
    except ImportError as error:
        raise MissingPackageError(argument("data", data), "huggingface_hub", "server") from error
    except Exception as error:  # what the client raises comes from several libraries
        raise ParameterError(
            "data",
            data,
            f"could not be fetched from the hub ({first_line(error, 100)}); download its parquet "
            "files elsewhere and name their local folder with `data`",
        ) from error


def _list(repository: str, revision: str | None) -> list[PurePosixPath]:
    """List the parquet files; without a network those that were fetched before."""
    from huggingface_hub import list_repo_files

    try:
        names = list_repo_files(repository, repo_type="dataset", revision=revision)
    except Exception:
        names = _cached(repository, revision)
        if not names:
            raise
    paths = map(PurePosixPath, names)
    return [path for path in paths if path.suffix == ".parquet" and path.name[0] != "."]


def _cached(repository: str, revision: str | None) -> list[str]:
    from huggingface_hub import snapshot_download

    try:
        # No patterns: what was never asked for is not missing.
        folder = snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[],
            local_files_only=True,
        )
    except Exception:
        return []
    return [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.parquet")]


def _fetch(repository: str, folder: PurePosixPath, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision,
            allow_patterns=str(folder / "*.parquet"),
        )
    )
