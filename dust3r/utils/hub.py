"""Weights by name: a file here, or a repository on the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

HUB_ERRORS = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)


def weights_file(name: str | Path) -> Path:
    """``name`` where it is a file; else ``model.safetensors`` of the hub repository of that name.

    Raises:
        FileNotFoundError: neither is to be had.
    """
    if Path(name).is_file():
        return Path(name)
    try:
        return Path(hf_hub_download(str(name), "model.safetensors"))
    except HUB_ERRORS as error:
        raise not_found(name, error) from error


def not_found(name: str | Path, error: Exception) -> FileNotFoundError:
    """What to say when neither this machine nor the hub has ``name``."""
    return FileNotFoundError(
        f"{name} is no file here, and the Hugging Face hub gave none "
        f"({type(error).__name__}). Check the path, or download the weights on a machine with a "
        "connection and give the path of their file"
    )
