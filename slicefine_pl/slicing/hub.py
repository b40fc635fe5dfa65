"""Upload a folder to the Hugging Face Hub, with the optional package ``huggingface_hub``."""

import re
from pathlib import Path

from slicefine_pl.optional import optional_imports, require


def check_repository(name: str) -> None:
    """Check that a folder could be uploaded to a repository, as far as that is known without a network.

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.
        ValueError: The name is not of the form ``"owner/name"``.
    """
    require("huggingface_hub")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise ValueError(f'push={name!r} is not the name of a repository; it has the form "owner/name".')


def upload(folder: str | Path, repository: str) -> str:
    """Upload a folder, and return the address of the commit.

    Args:
        folder: Its files are uploaded.
        repository: Created if it does not exist; it is then private.

    Raises:
        OSError: The hub cannot be reached, or refuses.
    """
    with optional_imports():
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a LoRA adapter")
    except (OSError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"{str(folder)!r} was not uploaded to {repository} ({reason}). The folder is complete."
        ) from error
    return commit.commit_url
