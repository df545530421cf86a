"""Names of classes through a CLIP text encoder, a random one in a folder."""

import json
from pathlib import Path

import pytest
import torch

from sam2_3dmed.baselines.universal import PROMPT, embed_names
from sam2_3dmed.errors import WeightsError


def write_clip(folder: Path, size: int = 512) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

    words = ["[pad]", "[unk]", *PROMPT.lower().replace("{}.", "").split(), "A", "liver", "spleen", "."]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[pad]", unk_token="[unk]").save_pretrained(folder)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=size,
        eos_token_id=vocabulary["."],
        pad_token_id=0,
    )
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    return folder


def test_each_name_has_a_direction_of_its_own(tmp_path: Path) -> None:
    found = embed_names(write_clip(tmp_path), ["liver", "spleen", "liver"])
    assert found.shape == (3, 512)
    assert found.norm(dim=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_folders_that_are_no_clip(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing: no such folder; model\.text expects a CLIP model"):
        embed_names(tmp_path / "nothing", ["liver"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such"}))
    with pytest.raises(WeightsError, match="no CLIP model"):
        embed_names(tmp_path, ["liver"])


def test_another_size(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="have 64 numbers, and 512 are expected"):
        embed_names(write_clip(tmp_path, size=64), ["liver"])
