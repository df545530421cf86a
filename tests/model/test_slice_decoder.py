"""The memory bank remembers what SAM2's does and no more; the decoder reads it in SAM2's order."""

import pytest
import torch
from torch import Tensor, nn

from sam2_3dmed.model.mask_decoder import Masks
from sam2_3dmed.model.memory_attention import KeyValues
from sam2_3dmed.model.memory_bank import Memory, MemoryBank
from sam2_3dmed.model.slice_decoder import SliceDecoder

LENGTH = 20
# What slice i of 20 attends to: the first slice, then backwards from the one before it.
SPATIAL = {i: ([0, *range(i - 1, max(i - 7, 0), -1)] if i else []) for i in range(LENGTH)}
POINTERS = {i: ([0, *range(i - 1, max(i - 16, 0), -1)] if i else []) for i in range(LENGTH)}


def memory_of(number: int, *, places: int = 1, channels: int = 64) -> Memory:
    """A memory in which every value is the slice's number."""
    return Memory(torch.full((1, places, 64), float(number)), (), torch.full((1, channels), float(number)))


def numbers(tensors: list[Tensor]) -> list[int]:
    return [int(tensor.flatten()[0]) for tensor in tensors]


def test_the_tables_above_are_sam2s() -> None:
    assert SPATIAL[1] == POINTERS[1] == [0]
    assert SPATIAL[6] == [0, 5, 4, 3, 2, 1]
    assert SPATIAL[7] == [0, 6, 5, 4, 3, 2, 1]
    assert SPATIAL[19] == [0, 18, 17, 16, 15, 14, 13]
    assert POINTERS[15] == [0, *range(14, 0, -1)]
    assert POINTERS[16] == [0, *range(15, 0, -1)]
    assert POINTERS[19] == [0, *range(18, 3, -1)]


def test_the_bank_holds_the_first_and_the_latest() -> None:
    bank = MemoryBank(LENGTH)
    for i in range(LENGTH):
        spatial, rows = bank.spatial()
        pointers, distances = bank.pointers()
        assert bank.count == i
        assert numbers([memory.spatial for memory in spatial]) == SPATIAL[i]
        assert numbers(pointers) == POINTERS[i]
        assert rows == ([6, *(i - j - 1 for j in SPATIAL[i][1:])] if i else [])
        assert distances == [i - j for j in POINTERS[i]]
        bank.append(memory_of(i))


def test_the_bank_is_bounded() -> None:
    bank = MemoryBank(1000)
    for i in range(1000):
        bank.append(memory_of(i))
    assert len(bank.spatial()[0]) == 7
    assert len(bank.pointers()[0]) == 16
    assert bank.pointers()[1] == [1000, *range(1, 16)]


@pytest.fixture(scope="module", params=[True, False], ids=["SAM 2.1", "SAM 2.0"])
def decoders(nano, request) -> tuple[SliceDecoder, nn.Module]:
    """A slice decoder of two layers, and upstream's memory attention with the same weights."""
    from dataclasses import replace

    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMemoryAttention

    from sam2_3dmed.model import build

    size = replace(build.SIZES["nano"], memory_attention_layers=2, channels=128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.SIZES, "nano", size)
        decoder = nano(srpp=False, boundary=False, num_classes=1, pointer_time=request.param).segmentation
    config = build.sam2_config(size, 64)
    config._attn_implementation = "sdpa"
    theirs = Sam2VideoMemoryAttention(config).eval()
    theirs.load_state_dict(decoder.memory_attention.state_dict())
    with torch.no_grad():
        for parameter in (decoder.no_memory_embedding, decoder.memory_temporal_positional_encoding):
            nn.init.normal_(parameter)
        for mine, their in zip(decoder.memory_attention.parameters(), theirs.parameters(), strict=True):
            their.copy_(nn.init.normal_(mine, std=0.2))
    return decoder, theirs


def random_memory(decoder: SliceDecoder, number: int) -> Memory:
    generator = torch.Generator().manual_seed(number)
    spatial = torch.randn(2, 16, 64, generator=generator).requires_grad_()
    read = decoder.memory_attention.project_spatial(spatial, decoder.memory_position_encoding)
    return Memory(spatial, read, torch.randn(2, decoder.channels, generator=generator))


def pointer_position(decoder: SliceDecoder, distance: int, length: int) -> Tensor:
    """By hand: sin and cos of share / 10000^(2 floor(k / 2) / half), through the projection; (C / 64, 1, 64)."""
    each = decoder.channels // 64
    if decoder.temporal_positional_encoding_projection_layer is None:
        return torch.zeros(each, 1, 64)
    half = decoder.channels // 2
    share = distance / max(min(length, 16) - 1, 1)
    angles = share / 10_000 ** (torch.tensor([2 * (k // 2) / half for k in range(half)]))
    code = decoder.temporal_positional_encoding_projection_layer(torch.cat([angles.sin(), angles.cos()]))
    return code.expand(each, 1, 64)


def without_gradients(decoder: SliceDecoder, context: Tensor, i: int, length: int) -> Tensor:
    """The same slice as prediction has it, where memories are weighed first and projected then."""
    bank = MemoryBank(length)
    with torch.no_grad():
        for j in range(i):
            bank.append(random_memory(decoder, j))
        assert all(read.values.shape == (2, 16, 64) for read in bank.first.key_values)
        return decoder.attend(context, bank).flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("i", "length"), [(i, LENGTH) for i in (1, 2, 6, 7, 8, 15, 16, 17, 19)] + [(1, 2), (4, 6)])
def test_slice_i_reads_the_bank_as_upstream_does(decoders, i: int, length: int) -> None:
    """Upstream's attention, fed as SAM2 does: spatial memories with their temporal row, then the pointers' tokens."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoPositionEmbeddingSine

    decoder, theirs = decoders
    bank = MemoryBank(length)
    memories = [random_memory(decoder, j) for j in range(i)]
    for memory in memories:
        bank.append(memory)
    context = torch.randn(2, decoder.channels, 4, 4, generator=torch.Generator().manual_seed(99)).requires_grad_()

    def sine(channels: int) -> Tensor:
        encoding = Sam2VideoPositionEmbeddingSine(num_position_features=channels // 2, normalize=True)
        return encoding(torch.Size((1, channels, 4, 4)), "cpu", torch.float32).flatten(2).permute(2, 0, 1)

    rows = [6, *(i - j - 1 for j in SPATIAL[i][1:])]
    tokens = [memories[j].spatial.transpose(0, 1) for j in SPATIAL[i]]
    positions = [sine(64) + decoder.memory_temporal_positional_encoding[row] for row in rows]
    for j in POINTERS[i]:
        tokens.append(memories[j].pointer.unflatten(-1, (-1, 64)).transpose(0, 1))
        positions.append(pointer_position(decoder, i - j, length))
    num_pointer_tokens = len(POINTERS[i]) * decoder.channels // 64
    (expected,) = theirs(
        context.flatten(2).permute(2, 0, 1),
        torch.cat(tokens),
        sine(decoder.channels),
        torch.cat([position.expand(-1, 2, -1) for position in positions]),
        num_pointer_tokens,
    )
    found = decoder.attend(context, bank).flatten(2).transpose(1, 2)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(without_gradients(decoder, context, i, length), expected, atol=1e-4, rtol=1e-4)

    weight = torch.randn_like(found)
    sources = [context, decoder.memory_temporal_positional_encoding, *(memories[j].spatial for j in SPATIAL[i])]
    ours, others = (torch.autograd.grad((x * weight).sum(), sources, retain_graph=True) for x in (found, expected))
    for gradient, other in zip(ours, others, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(gradient, other, atol=1e-3 * other.abs().max().item(), rtol=1e-3)


@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("i", [1, 9])
def test_a_pooled_token_weighs_as_much_as_its_places_beside_pointers(nano, channels: int, bf16: bool, i: int) -> None:
    """A memory in which each of four places has their mean is read as the pooled one, whatever computes it."""
    switches = {"srpp": False, "boundary": False, "channels": channels}
    plain, pooled = (nano(**switches, memory_pooling=pooling).segmentation for pooling in (1, 2))
    for decoder in (plain, pooled):
        torch.manual_seed(0)
        nn.init.normal_(decoder.memory_temporal_positional_encoding)
        nn.init.normal_(decoder.memory_attention.layers[0].cross_attn_image.k_proj.weight)
    few, every = MemoryBank(LENGTH), MemoryBank(LENGTH)
    context = torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(99))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        memories = [random_memory(pooled, j) for j in range(i)]
        for memory in memories:
            few.append(memory)
            copies = tuple(KeyValues(*(x.repeat_interleave(4, dim=1) for x in read)) for read in memory.key_values)
            every.append(memory._replace(key_values=copies))
        found = pooled.attend(context, few)
        every.temporal_bias = tuple(tuple(b.repeat_interleave(4, 0) for b in layer) for layer in few.temporal_bias)
        expected = plain.attend(context, every)
    assert expected.std() > 0.1
    tolerance = 0.05 if bf16 else 1e-5
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    for gradient in torch.autograd.grad(found.square().sum(), [memories[j].spatial for j in SPATIAL[i]]):
        assert gradient.abs().amax(dim=-1).min() > 0


def test_the_first_slice_gets_the_no_memory_embedding(nano) -> None:
    decoder = nano(srpp=False, boundary=False).segmentation
    context = torch.randn(2, decoder.channels, 4, 4)
    attended = decoder.attend(context, MemoryBank(3))
    torch.testing.assert_close(attended - context, decoder.no_memory_embedding.view(1, -1, 1, 1).expand_as(context))


def test_the_first_slice_reads_a_token_where_the_weights_are_no_sam2s(nano, open_paths) -> None:
    """As any other slice would read a memory of that one token."""
    network = open_paths(nano(srpp=False, boundary=False, no_memory_token=True))
    decoder = network.segmentation
    context = torch.randn(2, decoder.channels, 4, 4)
    token = decoder.no_memory_embedding
    assert token.shape == (1, 1, 64)
    attention = decoder.memory_attention
    value = attention.layers[0].cross_attn_image.v_proj(token)  # a weight of 1 for the only one there is
    read = (KeyValues(torch.zeros(2, 1, decoder.channels), value.expand(2, -1, -1)),)
    places = context.flatten(2).transpose(1, 2) + 0.1 * decoder.position_encoding
    expected = attention(places, read).transpose(1, 2).view_as(context)
    torch.testing.assert_close(decoder.attend(context, MemoryBank(3)), expected)


def memory_inputs(decoder: SliceDecoder, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    tokens = torch.zeros(2, num_classes, decoder.channels)
    return torch.randn(2, decoder.channels, 4, 4), torch.randn(2, num_classes, 16, 16), tokens


def encode_memory(decoder: SliceDecoder, z: Tensor, logits: Tensor, tokens: Tensor) -> Memory:
    return decoder.encode_memory(z, Masks(logits, tokens, None, None), attended=z)


def test_the_memory_takes_the_union_of_the_classes(nano, move) -> None:
    """With the class path at zero the memory of K classes is that of one class with their largest logit."""
    decoder = nano(srpp=False, boundary=False, num_classes=3).segmentation
    z, logits, tokens = memory_inputs(decoder, 3)
    union = encode_memory(decoder, z, logits, tokens)
    assert union.spatial.shape == (2, 16, 64)
    one_map = logits.amax(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(union.spatial, encode_memory(decoder, z, one_map, tokens).spatial)
    move(decoder.class_memory)
    assert (encode_memory(decoder, z, logits, tokens).spatial - union.spatial).abs().max() > 1e-3


def test_the_moved_class_path_tells_the_classes_apart(nano, move) -> None:
    decoder = nano(srpp=False, boundary=False, num_classes=3).segmentation
    z, logits, tokens = memory_inputs(decoder, 3)
    swapped = logits[:, [1, 0, 2]]
    torch.testing.assert_close(
        encode_memory(decoder, z, logits, tokens).spatial, encode_memory(decoder, z, swapped, tokens).spatial
    )
    move(decoder.class_memory)
    apart = encode_memory(decoder, z, logits, tokens).spatial - encode_memory(decoder, z, swapped, tokens).spatial
    assert apart.abs().max() > 1e-3


def test_the_memory_encoder_sees_raw_features_and_probabilities_of_20_p_minus_10(nano) -> None:
    decoder = nano(srpp=False, boundary=False, num_classes=1).segmentation
    seen = {}

    def spy(z, mask):
        seen.update(z=z, mask=mask)
        return z[:, :64], None

    decoder.memory_encoder.forward = spy
    z, _, tokens = memory_inputs(decoder, 1)
    encode_memory(decoder, z, torch.full((2, 1, 16, 16), 2.0), tokens)
    assert seen["z"] is z
    assert seen["mask"].shape == (2, 1, 64, 64)
    expected = 20 / (1 + torch.tensor(-2.0).exp()) - 10
    torch.testing.assert_close(seen["mask"], expected.expand(2, 1, 64, 64))


def test_one_class_has_no_class_path(nano) -> None:
    assert nano(srpp=False, boundary=False, num_classes=1).segmentation.class_memory is None


def test_the_pointer_is_the_projection_of_the_mean_class_token(nano, slab) -> None:
    network = nano(srpp=False, boundary=False, num_classes=3)
    decoder = network.segmentation
    features = network.encoder(slab(depth=1))
    fine = decoder.project(features)
    inputs = (features.z[:, 0], fine.stride8[:, 0], fine.stride4[:, 0])
    masks = decoder.decode(*inputs)
    pointer, tokens = decoder.encode_memory(inputs[0], masks, inputs[0]).pointer, masks.class_tokens
    torch.testing.assert_close(pointer, decoder.object_pointer_proj(tokens.mean(dim=1)))
