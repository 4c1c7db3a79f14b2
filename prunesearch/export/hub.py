"""Uploading an export to the Hugging Face Hub.

What can go wrong there is looked for before the export, which may take hours, and looked for again before the upload.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils._validators import validate_repo_id

from prunesearch.errors import InputError, PruneSearchError, RunError, one_line

_TOKEN = re.compile(r"hf_\w+")


def check_name(repository: str) -> None:
    """Make sure, before any work is done, that a repository is named with its owner.

    Raises:
        InputError: it is not, or no repository can have this name.
    """
    if repository.count("/") != 1 or repository.startswith("/") or repository.endswith("/"):
        raise InputError(f"--push-to-hub {repository!r} is no repository: write OWNER/NAME")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"--push-to-hub {repository!r} is no repository: {one_line(error)}") from None


def check_access(repository: str, out: Path, public: bool, api: HfApi | None = None) -> None:
    """Make sure, before any work is done, that there is a token and a network, and that nobody else would read along.

    Args:
        out: where the export will lie, for the message.
        public: the user wants the upload even if the repository is public.
        api: a double, in tests.

    Raises:
        InputError: no upload would be possible, or the repository is public and that was not asked for.
    """
    api = api or HfApi()
    try:
        _check_rights(repository.partition("/")[0], api.whoami())
        _refuse_public(repository, public, api)
    except PruneSearchError:
        raise
    except LocalTokenNotFoundError:
        raise InputError(
            "--push-to-hub needs a token: log in with hf auth login, or set HF_TOKEN; nothing was exported"
        ) from None
    except Exception as error:  # noqa: BLE001 (the hub's library passes on errors of several HTTP libraries)
        raise InputError(
            f"--push-to-hub {repository}: the hub does not answer as it should ({_safe(error)}), and nothing was "
            f"exported: export without it, and later {upload_command(repository, out)}"
        ) from None


def push(folder: Path, repository: str, dropped: str, api: HfApi | None = None, *, public: bool = False) -> str:
    """Upload a finished export; a repository that does not exist is made, and private.

    Args:
        dropped: what was dropped, for the commit.
        api: a double, in tests.
        public: upload even if the repository exists and is public.

    Returns:
        Where it is.

    Raises:
        RunError: it could not be uploaded; the folder stays.
    """
    api = api or HfApi()
    try:
        api.create_repo(repository, repo_type="model", private=True, exist_ok=True)
        _refuse_public(repository, public, api)  # it may have been made, or made public, meanwhile
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type="model",
            commit_message=f"Without layers {dropped}, exported by prunesearch",
        )
    except Exception as error:  # noqa: BLE001 (see above; what was exported is not lost with any of them)
        raise RunError(
            f"{str(folder)!r} is exported and verified, but could not be uploaded to {repository!r} "
            f"({_safe(error)}): log in with hf auth login, then {upload_command(repository, folder)}"
        ) from None
    return str(getattr(done, "commit_url", done))


def upload_command(repository: str, folder: Path) -> str:
    """The command that uploads a folder; it makes a private repository where there is none."""
    return shlex.join(["hf", "upload", "--private", repository, str(folder)])


def _check_rights(owner: str, me: Mapping[str, Any]) -> None:
    """Refuse an owner that the token cannot write for, as far as the hub says so.

    Raises:
        InputError: it cannot.
    """
    names = [me.get("name"), *(org.get("name") for org in me.get("orgs", ()))]
    if owner not in names:
        raise InputError(f"--push-to-hub: the token is of {names[0]!r}, who is not in {owner!r}: name another owner")
    if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError("--push-to-hub: the token may read only: make one that may write, and hf auth login again")


def _refuse_public(repository: str, public: bool, api: HfApi) -> None:
    """Refuse to show the world an export of a model that may be private.

    Raises:
        InputError: the repository exists, is public, and that was not asked for.
    """
    if public:
        return
    try:
        private = api.repo_info(repository, repo_type="model").private
    except RepositoryNotFoundError:  # it will be made
        return
    if not private:
        raise InputError(
            f"{repository!r} is a public repository, and anybody could read the upload: add --public if that is "
            "wanted, or give another name"
        )


def _safe(error: Exception) -> str:
    """An error's text in one line, without a token that a library may have put into it."""
    return _TOKEN.sub("hf_***", one_line(error))
