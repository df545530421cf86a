"""The memory bank remembers what SAM2's does and no more; the decoder reads it in SAM2's order."""

import pytest
import torch
from torch import Tensor, nn

from sam2_3dmed.model.slice_decoder import Memory, MemoryBank, SliceDecoder

LENGTH = 20
# What slice i of 20 attends to: the first slice, then backwards from the one before it.
SPATIAL = {i: ([0, *range(i - 1, max(i - 7, 0), -1)] if i else []) for i in range(LENGTH)}
POINTERS = {i: ([0, *range(i - 1, max(i - 16, 0), -1)] if i else []) for i in range(LENGTH)}


def memory_of(number: int, *, places: int = 1, channels: int = 64) -> Memory:
    """A memory in which every value is the slice's number."""
    return Memory(torch.full((places, 1, 64), float(number)), torch.full((1, channels), float(number)))


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
        assert numbers(spatial) == SPATIAL[i]
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


class Recorder(nn.Module):
    """Stands for memory attention; keeps what it was asked."""

    def forward(self, queries, memory, query_position, memory_position, num_pointer_tokens):
        self.asked = (memory, memory_position, num_pointer_tokens)
        self.shapes = (queries.shape, query_position.shape)
        return queries.transpose(0, 1).unsqueeze(0)


@pytest.fixture
def recorded(nano) -> tuple[SliceDecoder, Recorder]:
    decoder = nano(srpp=False, boundary=False, num_classes=1).segmentation
    decoder.memory_attention = Recorder()
    with torch.no_grad():  # row r of the temporal encoding reads 10 r, far above the in-plane code's -1..1
        decoder.memory_temporal_positional_encoding.copy_(torch.arange(7.0).view(7, 1, 1, 1) * 10)
    return decoder, decoder.memory_attention


@pytest.mark.parametrize("i", [1, 2, 6, 7, 8, 15, 16, 17, 19])
def test_slice_i_reads_the_bank_in_sam2s_order(recorded, i: int) -> None:
    """Spatial memories with their temporal row, then pointers last, each as C / 64 tokens."""
    decoder, recorder = recorded
    each = decoder.channels // 64
    bank = MemoryBank(LENGTH)
    for j in range(i):
        bank.append(memory_of(j, places=4, channels=decoder.channels))
    context = torch.randn(1, decoder.channels, 2, 2)
    torch.testing.assert_close(decoder.attend(context, bank), context)  # the recorder hands the query back

    memory, position, num_pointer_tokens = recorder.asked
    assert recorder.shapes == ((4, 1, decoder.channels), (4, 1, decoder.channels))
    assert num_pointer_tokens == len(POINTERS[i]) * each
    assert memory.shape == position.shape == (4 * len(SPATIAL[i]) + num_pointer_tokens, 1, 64)
    split = 4 * len(SPATIAL[i])
    assert memory[:split:4, 0, 0].tolist() == SPATIAL[i]
    assert memory[split::each, 0, 0].tolist() == POINTERS[i]
    rows = [6, *(i - j - 1 for j in SPATIAL[i][1:])]
    assert (position[:split].mean(dim=(1, 2)).view(-1, 4).mean(dim=1) / 10).round().tolist() == rows


@pytest.mark.parametrize(("length", "scale"), [(20, 15), (16, 15), (6, 5), (2, 1), (1, 1)])
def test_pointers_carry_their_distance_as_a_share_of_the_window(recorded, length: int, scale: int) -> None:
    """By hand: sin and cos of share / 10000^(2 floor(k / 2) / half), through the projection."""
    decoder, recorder = recorded
    bank = MemoryBank(length)
    for j in range(4):
        bank.append(memory_of(j, places=4, channels=decoder.channels))
    decoder.attend(torch.randn(1, decoder.channels, 2, 2), bank)
    _, position, num_pointer_tokens = recorder.asked

    half = decoder.channels // 2
    share = torch.tensor([4.0, 1, 2, 3]).view(4, 1) / scale
    angles = share / 10_000 ** (torch.tensor([2 * (k // 2) / half for k in range(half)]))
    code = decoder.temporal_positional_encoding_projection_layer(torch.cat([angles.sin(), angles.cos()], dim=1))
    expected = code.repeat_interleave(decoder.channels // 64, dim=0)
    torch.testing.assert_close(position[-num_pointer_tokens:, 0], expected)


def test_without_pointer_time_pointers_have_no_position(nano) -> None:
    decoder = nano(srpp=False, boundary=False, pointer_time=False).segmentation
    assert decoder.temporal_positional_encoding_projection_layer is None
    decoder.memory_attention = Recorder()
    bank = MemoryBank(3)
    bank.append(memory_of(1, places=4, channels=decoder.channels))
    decoder.attend(torch.randn(1, decoder.channels, 2, 2), bank)
    _, position, num_pointer_tokens = decoder.memory_attention.asked
    assert position[-num_pointer_tokens:].abs().max() == 0


def test_the_first_slice_gets_the_no_memory_embedding(nano) -> None:
    decoder = nano(srpp=False, boundary=False).segmentation
    context = torch.randn(2, decoder.channels, 4, 4)
    attended = decoder.attend(context, MemoryBank(3))
    torch.testing.assert_close(attended - context, decoder.no_memory_embedding.view(1, -1, 1, 1).expand_as(context))


def memory_inputs(decoder: SliceDecoder, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    pointer = torch.zeros(2, decoder.channels)
    return torch.randn(2, decoder.channels, 4, 4), torch.randn(2, num_classes, 16, 16), pointer


def test_the_memory_takes_the_union_of_the_classes(nano, move) -> None:
    """With the class path at zero the memory of K classes is that of one class with their largest logit."""
    decoder = nano(srpp=False, boundary=False, num_classes=3).segmentation
    z, logits, pointer = memory_inputs(decoder, 3)
    union = decoder.remember(z, logits, pointer)
    assert union.spatial.shape == (16, 2, 64)
    one_map = logits.amax(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(union.spatial, decoder.remember(z, one_map, pointer).spatial)
    move(decoder.class_memory)
    assert (decoder.remember(z, logits, pointer).spatial - union.spatial).abs().max() > 1e-3


def test_the_moved_class_path_tells_the_classes_apart(nano, move) -> None:
    decoder = nano(srpp=False, boundary=False, num_classes=3).segmentation
    z, logits, pointer = memory_inputs(decoder, 3)
    swapped = logits[:, [1, 0, 2]]
    torch.testing.assert_close(
        decoder.remember(z, logits, pointer).spatial, decoder.remember(z, swapped, pointer).spatial
    )
    move(decoder.class_memory)
    apart = decoder.remember(z, logits, pointer).spatial - decoder.remember(z, swapped, pointer).spatial
    assert apart.abs().max() > 1e-3


def test_the_memory_encoder_sees_raw_features_and_probabilities_of_20_p_minus_10(nano) -> None:
    decoder = nano(srpp=False, boundary=False, num_classes=1).segmentation
    seen = {}

    def spy(z, mask):
        seen.update(z=z, mask=mask)
        return z[:, :64], None

    decoder.memory_encoder.forward = spy
    z, _, pointer = memory_inputs(decoder, 1)
    decoder.remember(z, torch.full((2, 1, 16, 16), 2.0), pointer)
    assert seen["z"] is z
    assert seen["mask"].shape == (2, 1, 64, 64)
    expected = 20 / (1 + torch.tensor(-2.0).exp()) - 10
    torch.testing.assert_close(seen["mask"], expected.expand(2, 1, 64, 64))


def test_one_class_has_no_class_path(nano) -> None:
    assert nano(srpp=False, boundary=False, num_classes=1).segmentation.class_memory is None


def test_the_pointer_is_the_projection_of_the_mean_class_token(nano, window) -> None:
    network = nano(srpp=False, boundary=False, num_classes=3)
    decoder = network.segmentation
    features = network.encoder(window(depth=1))
    fine = decoder.project(features)
    inputs = (features.z[:, 0], fine.stride8[:, 0], fine.stride4[:, 0])
    _, pointer = decoder.decode(*inputs)
    _, tokens = decoder.mask_decoder(*inputs)
    torch.testing.assert_close(pointer, decoder.object_pointer_proj(tokens.mean(dim=1)))
