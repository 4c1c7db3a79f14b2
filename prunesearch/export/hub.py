"""Upload of an export to the Hugging Face Hub.

An export may take hours. So everything that could prevent the upload is checked before the export,
and again before the upload.
"""

import re
import shlex
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id

from prunesearch.errors import (
    InputError,
    PruneSearchError,
    RunError,
    one_line,
)
from prunesearch.runtime.json_values import JsonObject, as_list, as_object
from prunesearch.widths.layer_widths import described

_TOKEN = re.compile(r"hf_\w+")


def check_name(repository: str) -> None:
    """Check, before any work is done, that a repository is named with its owner.

    Raises:
        InputError: the owner is missing, or no repository can have this name.
    """
    if repository.count("/") != 1 or repository.startswith("/") or repository.endswith("/"):
        raise InputError(f"`push_to_hub` {repository!r} is not a repository: write OWNER/NAME")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(
            f"`push_to_hub` {repository!r} is not a repository: {one_line(error)}"
        ) from None


def check_access(repository: str, out: Path, public: bool, api: HfApi | None = None) -> None:
    """Check, before any work is done, that the upload is possible and that the repository is
    private.

    Args:
        repository: repository, as ``OWNER/NAME``.
        out: folder of the future export, for the message.
        public: upload even if the repository is public.
        api: a test double.

    Raises:
        InputError: the upload is not possible, or the repository is public and `public` is False.
    """
    api = api or HfApi()
    try:
        _check_rights(repository.partition("/")[0], api.whoami())
        _refuse_public(repository, public, api)
    except PruneSearchError:
        raise
    except LocalTokenNotFoundError:
        raise InputError(
            "`push_to_hub` needs a token: log in with hf auth login, or set HF_TOKEN; nothing was "
            "exported"
        ) from None
    # The hub's library passes on errors of several HTTP libraries.
    except Exception as error:  # noqa: BLE001
        raise InputError(
            f"`push_to_hub` {repository}: the hub does not answer as it should ({_safe(error)}), "
            f"and nothing was "
            f"exported: export without it, and later {upload_command(repository, out)}"
        ) from None


def push(
    folder: Path, repository: str, dropped: str, api: HfApi | None = None, *, public: bool = False
) -> str:
    """Upload a finished export. A repository that does not exist is created, and it is private.

    Args:
        folder: folder of the export.
        repository: repository, as ``OWNER/NAME``.
        dropped: dropped layers, for the commit message.
        api: a test double.
        public: upload even if the repository exists and is public.

    Returns:
        The URL of the commit.

    Raises:
        RunError: the upload failed. The folder stays.
    """
    api = api or HfApi()
    try:
        api.create_repo(repository, repo_type="model", private=True, exist_ok=True)
        # Somebody may have created the repository, or made it public, in the meantime.
        _refuse_public(repository, public, api)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type="model",
            commit_message=f"{described(dropped).capitalize()}, exported by prunesearch",
        )
    # As above. What was exported is not lost with any of them.
    except Exception as error:  # noqa: BLE001
        raise RunError(
            f"{str(folder)!r} is exported and verified, but could not be uploaded to "
            f"{repository!r} "
            f"({_safe(error)}): log in with hf auth login, then "
            f"{upload_command(repository, folder)}"
        ) from None
    return str(getattr(done, "commit_url", done))


def upload_command(repository: str, folder: Path) -> str:
    """Return the command that uploads a folder.

    It creates a private repository if there is none.
    """
    return shlex.join(["hf", "upload", "--private", repository, str(folder)])


def _check_rights(owner: str, me: JsonObject) -> None:
    """Refuse an owner for whom the token cannot write, as far as the hub tells.

    Args:
        owner: owner of the repository.
        me: the hub's answer about the token.

    Raises:
        InputError: the token cannot write for the owner.
    """
    names = [me.get("name")]
    for organisation in as_list(me.get("orgs", []), "orgs"):
        names.append(as_object(organisation, "an organisation").get("name"))
    if owner not in names:
        raise InputError(
            f"`push_to_hub`: the token is of {names[0]!r}, who is not in {owner!r}: name another "
            f"owner"
        )
    auth = as_object(me.get("auth", {}), "auth")
    token = as_object(auth.get("accessToken", {}), "accessToken")
    if token.get("role") == "read":
        raise InputError(
            "`push_to_hub`: the token may read only: make one that may write, and hf auth login "
            "again"
        )


def _refuse_public(repository: str, public: bool, api: HfApi) -> None:
    """Refuse to publish an export of a model that may be private.

    Raises:
        InputError: the repository exists and is public, and `public` is False.
    """
    if public:
        return
    try:
        private = api.repo_info(repository, repo_type="model").private
    except RepositoryNotFoundError:
        # The repository will be created as a private one.
        return
    if not private:
        raise InputError(
            f"{repository!r} is a public repository, and anybody could read the upload: add "
            f"`public` if that is "
            "wanted, or give another name"
        )


def _safe(error: Exception) -> str:
    """Return an error's text in one line, without any token that a library may have put into it."""
    return _TOKEN.sub("hf_***", one_line(error))
