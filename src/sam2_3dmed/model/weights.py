"""SAM2's weights from a Hugging Face hub id or folder, or from Meta's `.pt`, strictly into our network.

Meta's names become upstream's (`transformers`), which our modules have too. Each tensor is copied into the network, or
it belongs to a part that prompt-free segmentation never uses. A missing or unexpected key is an error that names it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sam2_3dmed.encoders.hiera import HIERA_SIZES
from sam2_3dmed.errors import WeightsError
from sam2_3dmed.model.hub import download
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.model.slice_decoder import SliceDecoder

# Parts of SAM2 for prompts, for the choice among masks and for absent objects. A self-sorting memory uses the head of
# predicted IoUs after all, and a network with boxes the embeddings of corners.
_UNUSED = re.compile(
    r"no_memory_positional_encoding|no_object_pointer|occlusion_spatial_embedding_parameter|mask_downsample\."
    r"|prompt_encoder\.(mask_embed|point_embed)\."
    r"|mask_decoder\.(iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps\.[123])\."
)

_OF_MEMORY = re.compile(r"memory_|object_pointer_proj\.|temporal_positional_encoding")

_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Meta's names -> upstream's, applied in this order.
_MLP = r"(mlps\.\d|obj_ptr_proj|_head)"
_META_TO_UPSTREAM = [
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.(neck\.convs\.\d)\.conv\.", r"vision_encoder.\1."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    (rf"{_MLP}\.layers\.0\.", r"\1.proj_in."),
    (rf"{_MLP}\.layers\.2\.", r"\1.proj_out."),
    (rf"{_MLP}\.layers\.1\.", r"\1.layers.0."),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^sam_prompt_encoder\.pe_layer\..*", "shared_image_embedding.positional_embedding"),
    (r"^sam_", ""),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"\.pix_feat_proj\.", ".feature_projection."),
    (r"\.fuser\.", ".memory_fuser."),
    (r"mask_downsampler\.encoder\.12\.", "mask_downsampler.final_conv."),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv([12])\.", r".pointwise_conv\1."),
    (r"\.gamma$", ".scale"),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.norm(\d?|_final_attn)\.", r".layer_norm\1."),
]


@dataclass(frozen=True)
class Sam2Weights:
    """SAM2's tensors under upstream's names."""

    state: dict[str, Tensor]
    size: str  # a key of HIERA_SIZES
    pointer_time: bool  # whether pointers carry their distance (SAM 2.1: yes, SAM 2.0: no)
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
        state = _read_folder(download(str(source)))
    else:
        raise WeightsError(
            f"{source}: no such weights; expected a hub id, a Hugging Face folder, or a .pt file of Meta's"
        )
    if other := [name for name, tensor in state.items() if tensor.dtype not in _REAL]:
        raise WeightsError(f"{source}: {other[0][:80]} is of type {state[other[0]].dtype}; weights are real numbers")
    pointer_time = "temporal_positional_encoding_projection_layer.weight" in state
    return Sam2Weights(state, _detect_size(state, str(source)), pointer_time, str(source))


@torch.no_grad()
def load_sam2(network: SAM2For3dMed, weights: Sam2Weights) -> None:
    """Put SAM2's weights into the encoder and into both slice decoders.

    Classes 2..K start as copies of SAM2's single-mask token and hypernetwork (reading 4).

    Raises:
        WeightsError: keys missing, unexpected, or of another shape, all named.
    """
    decoders = {"segmentation.": network.segmentation}
    if network.boundary is not None:
        decoders["boundary.decoder."] = network.boundary.decoder
    places = {f"encoder.{name}": tensor for name, tensor in network.encoder.state_dict().items()}
    for prefix, decoder in decoders.items():
        places |= {prefix + name: tensor for name, tensor in _shared_with_sam2(decoder).items()}

    given: dict[str, tuple[str, Tensor]] = {}
    for upstream, tensor in weights.state.items():
        name = _name_in_decoder(upstream)
        unused = _UNUSED.match(upstream) or (not network.has_memory and _OF_MEMORY.match(upstream))
        if not unused or f"segmentation.{name}" in places:
            prefixes = ["encoder."] if name.startswith("vision_encoder.") else decoders
            given |= {prefix + name: (name, tensor) for prefix in prefixes}
    if problems := _differences(places, given):
        raise WeightsError(f"{weights.source}: not the weights of this model: " + "; ".join(problems))

    for name, (_, tensor) in given.items():
        places[name].copy_(tensor)
    for decoder in decoders.values():
        _copy_first_class(decoder)


def _differences(places: dict[str, Tensor], given: dict[str, tuple[str, Tensor]]) -> list[str]:
    problems = {
        "missing ": sorted(places.keys() - given.keys()),
        "unexpected ": sorted({given[name][0] for name in given.keys() - places.keys()}),
        "wrong shape: ": [
            f"{given[name][0]} is {tuple(given[name][1].shape)}, not {tuple(places[name].shape)}"
            for name in sorted(places.keys() & given.keys())
            if places[name].shape != given[name][1].shape
        ],
    }
    return [
        problem + ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        for problem, names in problems.items()
        if names
    ]


def _name_in_decoder(upstream: str) -> str:
    """Our mask decoder holds what it needs of the prompt encoder."""
    return re.sub(
        r"^(prompt_encoder\.(?=no_mask|mask_embed|point_|not_a_point)|(?=shared_image_))", "mask_decoder.", upstream
    )


def _shared_with_sam2(decoder: SliceDecoder) -> dict[str, Tensor]:
    """The tensors of a decoder by SAM2's names; of the hypernetworks, views of the first class's."""
    shared = {
        name: tensor for name, tensor in decoder.state_dict().items() if not re.search("class_|mixer|prompt_maps", name)
    }
    hypernetworks = decoder.mask_decoder.class_hypernetworks
    layers = ("proj_in", "layers.0", "proj_out")
    for layer, weight, bias in zip(layers, hypernetworks.weights, hypernetworks.biases, strict=True):
        shared[f"mask_decoder.output_hypernetworks_mlps.0.{layer}.weight"] = weight[0].T
        shared[f"mask_decoder.output_hypernetworks_mlps.0.{layer}.bias"] = bias[0, 0]
    return shared


def _copy_first_class(decoder: SliceDecoder) -> None:
    masks = decoder.mask_decoder
    for parameter in (*masks.class_hypernetworks.weights, *masks.class_hypernetworks.biases):
        parameter[1:] = parameter[:1]
    if masks.class_tokens is not None:
        masks.class_tokens.weight[:] = masks.mask_tokens.weight[:1]


def _read_meta(path: Path) -> dict[str, Tensor]:
    try:
        file = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except Exception as error:  # torch raises many kinds for broken files
        # The first sentence: torch goes on to advise loading without `weights_only`, which would run the file's code.
        reason = _first_line(error).split(". ")[0]
        raise WeightsError(f"{path}: not a readable PyTorch checkpoint: {reason}") from None
    state = file.get("model") if isinstance(file, dict) else None
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()):
        raise WeightsError(f"{path}: no 'model' dictionary of tensors in it; expected a checkpoint of Meta's SAM2")
    require_finite(state, path)
    try:
        return from_meta(state)
    except (IndexError, RuntimeError, ValueError):  # a layer that SAM2 has not, or points of several shapes
        raise WeightsError(f"{path}: its tensors are not those of Meta's SAM2") from None


def from_meta(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename Meta's parameters; the four point embeddings become one."""
    points = sorted(name for name in state if name.startswith("sam_prompt_encoder.point_embeddings."))
    converted = {_upstream_name(name): tensor for name, tensor in state.items() if name not in points}
    if points:
        converted["prompt_encoder.point_embed.weight"] = torch.cat([state[name] for name in points])
    return converted


def _upstream_name(name: str) -> str:
    for pattern, replacement in _META_TO_UPSTREAM:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"mask_(downsampler\.encoder|downscaling)\.(\d+)\.", _convolution_or_norm, name)


def _convolution_or_norm(match: re.Match[str]) -> str:
    layer, part = divmod(int(match[2]), 3)  # convolution, norm, activation
    kind = ("conv", "layer_norm")[part]
    return f"mask_embed.{kind}{layer + 1}." if match[1] == "downscaling" else f"mask_downsampler.layers.{layer}.{kind}."


def _read_folder(folder: Path) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise WeightsError(f"{folder}: no model.safetensors in this folder")
    state = read_tensors(path)
    # Upstream stores the positional buffer twice; two that differ would mean two models in one file.
    twin = state.pop("prompt_encoder.shared_embedding.positional_embedding", None)
    shared = state.get("shared_image_embedding.positional_embedding")
    if twin is not None and (shared is None or not torch.equal(twin, shared)):
        raise WeightsError(f"{path}: shared_image_embedding and prompt_encoder.shared_embedding differ")
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a WeightsError if it is missing or damaged, or a number is not finite."""
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(path)
    except Exception as error:  # safetensors raises many kinds for headers that are not what they seem
        raise WeightsError(f"{path}: not a readable safetensors file: {_first_line(error)}") from None
    require_finite(state, path)
    return state


def require_finite(state: Mapping[str, Tensor], source: Path | str) -> None:
    """Raise WeightsError for weights that are NaN or infinite: they would give empty masks."""
    bad = [name for name, tensor in state.items() if tensor.dtype in _REAL and not tensor.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise WeightsError(f"{source}: damaged weights: {bad[0][:80]}{more} hold numbers that are NaN or infinite")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _detect_size(state: dict[str, Tensor], source: str) -> str:
    blocks = len(set(re.findall(r"vision_encoder\.backbone\.blocks\.(\d+)\.", " ".join(state))))
    projection = state.get("vision_encoder.backbone.patch_embed.projection.weight")
    width = None if projection is None or not projection.ndim else len(projection)
    for name, size in HIERA_SIZES.items():
        if size.widths[0] == width and sum(size.blocks) == blocks:
            return name
    raise WeightsError(
        f"{source}: not a SAM2 checkpoint (no known image encoder with {blocks} blocks of width {width})"
    )
