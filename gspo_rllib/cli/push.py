"""An exported folder goes to the Hugging Face hub, through ``huggingface_hub`` alone."""

from __future__ import annotations

from pathlib import Path

from gspo_rllib.errors import ModelError, SettingError

_TOKEN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write."


def check_name(name: str) -> None:
    """Refuses a name that the hub would not take, before anything is written.

    Raises:
        SettingError: It is no ``NAME`` or ``OWNER/NAME``.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented there

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise SettingError(f"--push {name!r}: {str(error).splitlines()[0]} Expected NAME or OWNER/NAME.") from error


def push(folder: Path, name: str, *, private: bool) -> str:
    """Uploads a folder as a model, into a new repository or as a new commit of one that is there.

    Args:
        folder: What ``export`` wrote.
        name: ``NAME`` or ``OWNER/NAME``.
        private: Whether a new repository is private.

    Returns:
        The model's address.

    Raises:
        ModelError: The hub refused it, or cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    failed = f"--push {name!r}: the folder {str(folder)!r} was written, but not pushed"
    try:
        repository = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder, repo_id=repository.repo_id, commit_message="Policy exported by gspo-rllib"
        )
    except OfflineModeIsEnabled as error:
        raise ModelError(f"{failed}: HF_HUB_OFFLINE is set. Unset it.") from error
    except LocalTokenNotFoundError as error:
        raise ModelError(f"{failed}: there is no token. {_TOKEN}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        instead = _TOKEN if status in (401, 403) else "Try `hf upload` with the folder."
        raise ModelError(f"{failed}: {str(error).strip().splitlines()[0][:200]} {instead}") from error
    except OSError as error:  # no connection
        raise ModelError(f"{failed}: the hub cannot be reached ({str(error)[:200]}).") from error
    return str(repository)
