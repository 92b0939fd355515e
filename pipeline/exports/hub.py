"""Upload an export to the Hugging Face Hub, into a new data set or beside the files of other runs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from pipeline.storage import SourceError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CLASSES = "id2label.json"
CARD = "README.md"


def push(folder: str, repository: str, fingerprint: str) -> bool:
    """Upload an export in one commit. A run that is uploaded again replaces its own files and no others.

    A new data set is private. One that holds the files of other runs keeps its card.

    Args:
        folder: Local DEST of an export to `huggingface`.
        repository: Data set on the Hub, as OWNER/NAME. The token is that of `hf auth login` or of HF_TOKEN.
        fingerprint: Fingerprint of the run, which is in the names of its files.

    Returns:
        Whether the data set already held files of other runs.

    Raises:
        SourceError: The data set holds other classes.
        OSError: The Hub cannot be reached, or it refuses a request.
    """
    from huggingface_hub import HfApi  # imported late, because it takes a second
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # the latter is that of its HTTP library

    api = HfApi()
    try:
        api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        present = set(api.list_repo_files(repository, repo_type="dataset"))
        others = [path for path in present if path.endswith(".parquet") and fingerprint not in path]
        if others:
            _check_classes(folder, repository, _remote_classes(api, repository) if CLASSES in present else None)
        api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            repo_type="dataset",
            commit_message=f"Labels of diffseg run {fingerprint}",
            delete_patterns=[f"data/*-{fingerprint}-*"],  # an earlier export may have had other parts
            allow_patterns=["data/*.parquet", *([] if others and CARD in present else [CARD]), CLASSES],
        )
    except HfHubHTTPError as error:
        raise OSError(f"the Hub refused {repository}: {error}") from error
    except HTTPError as error:
        raise OSError(
            f"{repository}: the Hub cannot be reached ({error}). {folder} holds the whole export; run the same command "
            "again to upload it"
        ) from error
    return bool(others)


def _remote_classes(api: HfApi, repository: str) -> bytes:
    path = api.hf_hub_download(repository, CLASSES, repo_type="dataset")
    with open(path, "rb") as file:
        return file.read()


def _check_classes(folder: str, repository: str, remote: bytes | None) -> None:
    """Check that the data set has the classes of this export, so that ids mean the same in all its files."""
    path = os.path.join(folder, CLASSES)
    local = None
    if os.path.exists(path):
        with open(path, "rb") as file:
            local = file.read()
    if (None if local is None else json.loads(local)) != (None if remote is None else json.loads(remote)):
        raise SourceError(
            f"{repository}: holds labels with other classes ({CLASSES} differs), so ids would mean different things in "
            "one data set; push to another one"
        )
