"""One class is upstream's mask decoder; K classes are K tokens with their own hypernetworks."""

import pytest
import torch
from torch import nn

from sam2_3dmed.model.mask_decoder import ClassHypernetworks


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_class_hypernetworks_are_separate_mlps(num_classes: int) -> None:
    torch.manual_seed(0)
    batched = ClassHypernetworks(num_classes, channels=8, out_channels=3)
    for bias in batched.biases:
        nn.init.normal_(bias)
    tokens = torch.randn(4, num_classes, 8)
    for k in range(num_classes):
        layers = []
        for weight, bias in zip(batched.weights, batched.biases, strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[2])
            linear.weight.data, linear.bias.data = weight[k].T.contiguous(), bias[k, 0]
            layers += [linear, nn.ReLU()]
        alone = nn.Sequential(*layers[:-1])
        torch.testing.assert_close(batched(tokens)[:, k], alone(tokens[:, k]))


def upstream_decoder(config, ours):
    """Upstream's whole mask decoder with the weights of ours, which has one class."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMaskDecoder

    config.mask_decoder_config._attn_implementation = "sdpa"
    config.mask_decoder_config.dynamic_multimask_via_stability = False
    theirs = Sam2VideoMaskDecoder(config.mask_decoder_config).eval()
    shared = {name: tensor for name, tensor in ours.state_dict().items() if name in theirs.state_dict()}
    hypernetworks = ours.class_hypernetworks
    for layer, weight, bias in zip(
        ("proj_in", "layers.0", "proj_out"), hypernetworks.weights, hypernetworks.biases, strict=True
    ):
        shared[f"output_hypernetworks_mlps.0.{layer}.weight"] = weight[0].T
        shared[f"output_hypernetworks_mlps.0.{layer}.bias"] = bias[0, 0]
    result = theirs.load_state_dict(shared, strict=False)
    assert not result.unexpected_keys
    assert all("_head." in name or "mlps." in name for name in result.missing_keys)
    return theirs


def test_one_class_is_upstreams_decoder_without_prompt(nano, slab) -> None:
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoModel

    from sam2_3dmed.model.build import SIZES, sam2_config

    network = nano(num_classes=1, srpp=False, boundary=False)
    ours = network.segmentation.mask_decoder
    config = sam2_config(SIZES["nano"], 64)
    theirs = upstream_decoder(config, ours)
    with torch.device("meta"):
        whole = Sam2VideoModel(config)
    whole.shared_image_embedding.positional_embedding = ours.shared_image_embedding.positional_embedding
    with torch.inference_mode():
        features = network.encoder(slab(batch=2, depth=1))
        fine = network.segmentation.project(features)
        z, stride8, stride4 = features.z[:, 0], fine.stride8[:, 0], fine.stride4[:, 0]
        logits, tokens, *_ = ours(z, stride8, stride4)
        masks, _, sam_tokens, _ = theirs(
            image_embeddings=z,
            image_positional_embeddings=whole.get_image_wide_positional_embeddings().expand(2, -1, -1, -1),
            sparse_prompt_embeddings=ours.not_a_point_embed.weight.expand(2, 1, 2, -1),
            dense_prompt_embeddings=ours.no_mask_embed.weight.view(1, -1, 1, 1).expand_as(z),
            multimask_output=False,
            high_resolution_features=[stride4, stride8],
        )
    assert logits.shape == (2, 1, 16, 16)
    assert logits.std() > 0.01
    torch.testing.assert_close(logits, masks[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens, sam_tokens[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("num_classes", [1, 2, 4])
def test_shapes_and_tokens(nano, slab, num_classes: int) -> None:
    network = nano(num_classes=num_classes, srpp=False, boundary=False)
    features = network.encoder(slab(batch=2, depth=1))
    fine = network.segmentation.project(features)
    logits, tokens, confidence, _ = network.segmentation.mask_decoder(
        features.z[:, 0], fine.stride8[:, 0], fine.stride4[:, 0]
    )
    assert logits.shape == (2, num_classes, 16, 16)
    assert tokens.shape == (2, num_classes, features.z.shape[2])
    assert confidence is None


def test_all_of_sam2s_tokens_take_part(nano, slab) -> None:
    """The masks change with the multi-mask, IoU and object-score tokens: they stay in the sequence."""
    network = nano(num_classes=2, srpp=False, boundary=False)
    decoder = network.segmentation.mask_decoder
    features = network.encoder(slab(depth=1))
    fine = network.segmentation.project(features)
    inputs = (features.z[:, 0].detach(), fine.stride8[:, 0].detach(), fine.stride4[:, 0].detach())
    for embedding in (decoder.mask_tokens, decoder.iou_token, decoder.obj_score_token, decoder.not_a_point_embed):
        (gradient,) = torch.autograd.grad(decoder(*inputs)[0].sum(), embedding.weight)
        assert (gradient.abs().sum(dim=1) > 0).all()


def test_a_class_makes_its_mask_with_its_own_hypernetwork(nano, slab) -> None:
    network = nano(num_classes=3, srpp=False, boundary=False)
    decoder = network.segmentation.mask_decoder
    features = network.encoder(slab(depth=1))
    fine = network.segmentation.project(features)
    inputs = (features.z[:, 0], fine.stride8[:, 0], fine.stride4[:, 0])
    with torch.no_grad():
        before = decoder(*inputs)[0]
        decoder.class_hypernetworks.biases[-1][1] += 1
        changed = (decoder(*inputs)[0] != before).flatten(2).any(dim=-1)
    assert changed.tolist() == [[False, True, False]]
