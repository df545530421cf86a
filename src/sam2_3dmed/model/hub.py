"""Files of the Hugging Face hub. Nothing heavy is imported, so that a command can look for weights first."""

from pathlib import Path

from sam2_3dmed.errors import WeightsError

DEFAULT_HUB_ID = "facebook/sam2.1-hiera-tiny"


def download(hub_id: str) -> Path:
    """The folder of a hub id's `model.safetensors`, from the hub or from the local cache.

    Raises:
        WeightsError: it is neither here nor to be had.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub_id, "model.safetensors")).parent
    except Exception as error:  # offline, unknown id, gated, no space: the hub has an exception for each
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise WeightsError(
            f"{hub_id}: no such folder, and it cannot be downloaded from the hub ({reason}). Offline: give --weights a "
            "folder or a .pt file that you downloaded elsewhere, nano for the small network that comes with this "
            "package, or none to train from scratch"
        ) from None
