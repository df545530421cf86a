"""SAM2's weights from a Hugging Face hub id or folder, or from Meta's `.pt`, strictly into our network.

Both formats are read into upstream's (`transformers`) names. From there each tensor is copied into the network, or it
is on the list of parts that prompt-free segmentation never uses. A missing or unexpected key is an error that names it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sam2_3dmed.encoders.hiera import HIERA_SIZES
from sam2_3dmed.errors import WeightsError
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.model.slice_decoder import SliceDecoder

DEFAULT_HUB_ID = "facebook/sam2.1-hiera-tiny"

# Parts of SAM2 for prompts, for the choice among masks and for absent objects. A self-sorting memory uses the head of
# predicted IoUs after all, and a network with boxes the embeddings of corners.
_UNUSED = re.compile(
    r"no_memory_positional_encoding|no_object_pointer|occlusion_spatial_embedding_parameter|mask_downsample\."
    r"|prompt_encoder\.(mask_embed|point_embed)\.|mask_decoder\.(iou_prediction_head|pred_obj_score_head)\."
    r"|mask_decoder\.output_hypernetworks_mlps\.[123]\."
)

# Meta's names -> upstream's, applied in this order.
_META_TO_UPSTREAM = [
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"(blocks\.\d+|transformer\.layers\.\d)\.mlp\.layers\.0\.", r"\1.mlp.proj_in."),
    (r"(blocks\.\d+|transformer\.layers\.\d)\.mlp\.layers\.1\.", r"\1.mlp.proj_out."),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (
        r"^sam_prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
        "shared_image_embedding.positional_embedding",
    ),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"(output_hypernetworks_mlps\.\d|object_pointer_proj|_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(output_hypernetworks_mlps\.\d|object_pointer_proj|_head)\.layers\.2\.", r"\1.proj_out."),
    (r"(output_hypernetworks_mlps\.\d|object_pointer_proj|_head)\.layers\.1\.", r"\1.layers.0."),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"^memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
    (r"mask_downsampler\.encoder\.12\.", "mask_downsampler.final_conv."),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv([12])\.", r".pointwise_conv\1."),
    (r"\.gamma$", ".scale"),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.norm(\d?)\.", r".layer_norm\1."),
]
_POINT_EMBEDDING = re.compile(r"^prompt_encoder\.point_embeddings\.(\d)\.weight$")
_MASK_DOWNSAMPLER = re.compile(r"mask_downsampler\.encoder\.(\d+)\.")


@dataclass(frozen=True)
class Sam2Weights:
    """SAM2's tensors under upstream's names."""

    state: dict[str, Tensor]
    size: str
    """A key of HIERA_SIZES."""
    pointer_time: bool
    """Whether pointers carry their distance (SAM 2.1: yes, SAM 2.0: no)."""
    source: str


def read_sam2(source: str | Path) -> Sam2Weights:
    """SAM2's weights from a Meta `.pt`, a Hugging Face folder or a hub id.

    Raises:
        WeightsError: nothing there, unreadable, offline, or not a SAM2 checkpoint.
    """
    path = Path(source)
    if path.is_dir():
        state = _read_folder(path)
    elif path.suffix in {".pt", ".pth"}:
        state = _read_meta(path)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not path.exists():
        state = _read_folder(_download(str(source)))
    else:
        raise WeightsError(
            f"{source}: no such weights; expected a hub id, a Hugging Face folder, or a .pt file of Meta's"
        )
    return Sam2Weights(
        state=state,
        size=_detect_size(state, str(source)),
        pointer_time="temporal_positional_encoding_projection_layer.weight" in state,
        source=str(source),
    )


def load_sam2(network: SAM2For3dMed, weights: Sam2Weights) -> None:
    """Put SAM2's weights into the encoder and into both slice decoders.

    Classes 2..K start as copies of SAM2's single-mask token and hypernetwork (reading 4).

    Raises:
        WeightsError: keys missing, unexpected, or of another shape, all named.
    """
    target = network.state_dict()
    state = {
        _canonical(name): tensor
        for name, tensor in weights.state.items()
        if not _UNUSED.match(name) or f"segmentation.{_canonical(name)}" in target
    }
    decoders = {"segmentation.": network.segmentation}
    if network.boundary is not None:
        decoders["boundary.decoder."] = network.boundary.decoder
    sources = {f"encoder.{name}": name for name in state if name.startswith("vision_encoder.")}
    for prefix in decoders:
        sources |= {prefix + name: name for name in state if not name.startswith("vision_encoder.")}
    expected = {name: tensor for name, tensor in target.items() if name.startswith(("encoder.", *decoders))}
    expected = {name: tensor for name, tensor in expected.items() if "class_" not in name}
    for prefix, decoder in decoders.items():
        expected |= {prefix + name: shared[0] for name, shared in _hypernetwork(decoder).items()}

    problems = _differences(expected, sources, state)
    if problems:
        raise WeightsError(f"{weights.source}: not the weights of this model: " + "; ".join(problems))
    with torch.no_grad():
        for name, source in sources.items():
            if name in target:
                target[name].copy_(state[source])
        for decoder in decoders.values():
            _copy_classes(decoder, state)


def _differences(expected: dict[str, Tensor], ours: dict[str, str], state: dict[str, Tensor]) -> list[str]:
    missing = sorted(expected.keys() - ours.keys())
    unexpected = sorted(ours[name] for name in ours.keys() - expected.keys())
    misshapen = [
        f"{source} is {tuple(state[source].shape)}, not {tuple(expected[name].shape)}"
        for name, source in sorted(ours.items())
        if name in expected and expected[name].shape != state[source].shape
    ]
    listed = []
    if missing:
        listed.append(f"missing {_some(missing)}")
    if unexpected:
        listed.append(f"unexpected {_some(sorted(set(unexpected)))}")
    if misshapen:
        listed.append(f"wrong shape: {_some(misshapen)}")
    return listed


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _canonical(name: str) -> str:
    """Upstream's name -> the name inside our slice decoder."""
    name = name.replace("prompt_encoder.no_mask_embed.", "mask_decoder.no_mask_embed.")
    name = re.sub(r"^prompt_encoder\.(not_a_)?point_embed\.", r"mask_decoder.\1point_embed.", name)
    return name.replace("shared_image_embedding.", "mask_decoder.shared_image_embedding.")


def _hypernetwork(decoder: SliceDecoder) -> dict[str, Tensor]:
    """SAM2's name of each part of the single mask's hypernetwork -> views of our K classes', (K, *SAM2's shape)."""
    hypernetworks = decoder.mask_decoder.class_hypernetworks
    parts = {}
    layers = ("proj_in", "layers.0", "proj_out")
    for layer, weight, bias in zip(layers, hypernetworks.weights, hypernetworks.biases, strict=True):
        name = f"mask_decoder.output_hypernetworks_mlps.0.{layer}"
        parts[f"{name}.weight"] = weight.transpose(1, 2)
        parts[f"{name}.bias"] = bias.squeeze(1)
    return parts


def _copy_classes(decoder: SliceDecoder, state: dict[str, Tensor]) -> None:
    for name, classes in _hypernetwork(decoder).items():
        classes.copy_(state[name].expand_as(classes))
    if decoder.mask_decoder.class_tokens is not None:
        tokens = decoder.mask_decoder.class_tokens.weight
        tokens.copy_(decoder.mask_decoder.mask_tokens.weight[:1].expand_as(tokens))


def _read_meta(path: Path) -> dict[str, Tensor]:
    try:
        file = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except Exception as error:  # torch raises many kinds for broken files
        # The first sentence: torch goes on to advise loading without `weights_only`, which would run the file's code.
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise WeightsError(f"{path}: not a readable PyTorch checkpoint: {reason}") from None
    state = file.get("model") if isinstance(file, dict) else None
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()):
        raise WeightsError(f"{path}: no 'model' dictionary of tensors in it; expected a checkpoint of Meta's SAM2")
    return from_meta(state)


def from_meta(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Meta's parameter names -> upstream's; the four point embeddings become one."""
    converted, points = {}, {}
    for name, tensor in state.items():
        upstream = name
        for pattern, replacement in _META_TO_UPSTREAM:
            upstream = re.sub(pattern, replacement, upstream)
        upstream = _MASK_DOWNSAMPLER.sub(_downsampler_layer, upstream)
        point = _POINT_EMBEDDING.match(upstream)
        if point:
            points[int(point[1])] = tensor
        else:
            converted[upstream] = tensor
    if points:
        converted["prompt_encoder.point_embed.weight"] = torch.cat([points[i] for i in sorted(points)])
    return converted


def _downsampler_layer(match: re.Match[str]) -> str:
    layer, part = divmod(int(match[1]), 3)  # convolution, norm, activation
    return f"mask_downsampler.layers.{layer}.{('conv', 'layer_norm')[part]}."


def _read_folder(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    try:
        state: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise WeightsError(f"{folder}: no model.safetensors in this folder") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file: {error}") from None
    # Upstream stores the positional buffer twice; two that differ would mean two models in one file.
    twin = state.pop("prompt_encoder.shared_embedding.positional_embedding", None)
    shared = state.get("shared_image_embedding.positional_embedding")
    if twin is not None and (shared is None or not torch.equal(twin, shared)):
        raise WeightsError(f"{path}: shared_image_embedding and prompt_encoder.shared_embedding differ")
    return state


def _download(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub_id, "model.safetensors")).parent
    except Exception as error:  # offline, unknown id, gated, no space: the hub has an exception for each
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{hub_id}: no such folder, and it cannot be downloaded from the hub ({reason}). Offline: give --weights "
            "a folder or a .pt file that you downloaded elsewhere, or --weights none to train from scratch"
        ) from None


def _detect_size(state: dict[str, Tensor], source: str) -> str:
    pattern = re.compile(r"vision_encoder\.backbone\.blocks\.(\d+)\.")
    blocks = len({match[1] for name in state if (match := pattern.match(name))})
    projection = state.get("vision_encoder.backbone.patch_embed.projection.weight")
    width = None if projection is None else projection.shape[0]
    for name, size in HIERA_SIZES.items():
        if size.widths[0] == width and sum(size.blocks) == blocks:
            return name
    raise WeightsError(
        f"{source}: not a SAM2 checkpoint (no known image encoder with {blocks} blocks of width {width})"
    )
