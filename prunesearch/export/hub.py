"""Uploading an export to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from prunesearch.errors import InputError, RunError, one_line


def check_name(repository: str) -> None:
    """Make sure, before any work is done, that a repository is named with its owner.

    Raises:
        InputError: it is not.
    """
    if repository.count("/") != 1 or repository.startswith("/") or repository.endswith("/"):
        raise InputError(f"--push-to-hub {repository!r} is no repository: write OWNER/NAME")


def push(folder: Path, repository: str, dropped: str, api: HfApi | None = None) -> str:
    """Upload a finished export; a repository that does not exist is made, and private.

    Args:
        dropped: what was dropped, for the commit.
        api: a double, in tests.

    Returns:
        Where it is.

    Raises:
        RunError: it could not be uploaded; the folder stays.
    """
    api = api or HfApi()
    try:
        api.create_repo(repository, repo_type="model", private=True, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type="model",
            commit_message=f"Without layers {dropped}, exported by prunesearch",
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RunError(
            f"{str(folder)!r} is exported and verified, but could not be uploaded to {repository!r} "
            f"({one_line(error)}): log in with hf auth login, then hf upload {repository} {folder}"
        ) from None
    return str(getattr(done, "commit_url", done))
