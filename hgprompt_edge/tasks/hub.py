"""Data sets of the Hugging Face hub, `hf:ORG/NAME`: their parquet files, in the hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

from hgprompt_edge.errors import UserError
from hgprompt_edge.tasks.parquet import parquet_files

PREFIX = "hf:"
CONVERTED = "refs/convert/parquet"
"""The branch on which the hub keeps what it converted to parquet."""


def is_hub_id(data: Path) -> bool:
    """Whether `data` names a data set of the hub rather than a file or folder."""
    return data.as_posix().startswith(PREFIX)


def fetch_parquet(data: Path) -> Path:
    """Fetch the parquet files of `hf:ORG/NAME` or `hf:ORG/NAME/FOLDER`; the folder they lie in.

    A data set without parquet files of its own has them on the branch of the hub's conversion.

    Raises
    ------
    UserError
        Not such an id; no huggingface_hub; the hub does not answer or has no such data set; no
        parquet files, or several configurations, one of which has to be named.
    """
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)", data.as_posix()[len(PREFIX) :])
    if found is None:
        raise UserError(f"--data {data}: not the id of a data set; write hf:ORG/NAME")
    repository, folder = found[1], found[2].strip("/")
    for revision in (None, CONVERTED):
        root = _snapshot(data, repository, folder, revision)
        if parquet_files(root / folder):
            return root / folder
        configurations = sorted({path.parent for path in (root / folder).rglob("*.parquet")})
        if len(configurations) == 1:
            return configurations[0]
        if configurations:
            names = [path.relative_to(root).as_posix() for path in configurations]
            raise UserError(
                f"--data {data}: the data set has several configurations "
                f"({', '.join(names[:5])}); name one, as in hf:{repository}/{names[0]}"
            )
    raise UserError(
        f"--data {data}: the data set has no parquet files there; download it and name the local "
        "folder with --data DIR"
    )


def _snapshot(data: Path, repository: str, folder: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"--data {data} needs huggingface_hub; install hgprompt-edge[server]"
        ) from error
    try:
        return Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                revision=revision,
                allow_patterns=f"{folder}/*.parquet" if folder else "*.parquet",
            )
        )
    except Exception as error:  # what the client raises comes from several libraries
        raise UserError(
            f"--data {data}: could not be fetched from the hub ({_brief(error)}); download its "
            "parquet files elsewhere and name their local folder with --data DIR"
        ) from error


def _brief(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0].strip()
    return (text or type(error).__name__)[:100].rstrip(".:; ")
