"""The names of classes as CLIP embeds them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sam2_3dmed.baselines.universal import TEXT_SIZE
from sam2_3dmed.errors import WeightsError

PROMPT = "A computerized tomography of a {}."
"""The sentence that the Universal Model's authors found best."""


def embed_names(folder: Path, names: Sequence[str]) -> Tensor:
    """(K, 512), each of length 1, by the text encoder of a CLIP model in a Hugging Face folder.

    Raises: WeightsError if there is no such model, or its embeddings are of another size.
    """
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such folder; model.text expects a CLIP model as Hugging Face saves it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = CLIPTextModelWithProjection.from_pretrained(folder, local_files_only=True).eval()
        with torch.inference_mode():
            tokens = tokenizer([PROMPT.format(name) for name in names], padding=True, return_tensors="pt")
            embeddings: Tensor = model(**tokens).text_embeds.float().clone()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{folder}: no CLIP model: {str(error).splitlines()[0]}") from None
    if embeddings.shape[1] != TEXT_SIZE:
        raise WeightsError(f"{folder}: its embeddings have {embeddings.shape[1]} numbers, and {TEXT_SIZE} are expected")
    return torch.nn.functional.normalize(embeddings, dim=1)
