"""MedSAM-2's bank on sequences worked out by hand, and the network that remembers with it."""

import math

import pytest
import torch
from torch import Tensor

from sam2_3dmed.config import InferenceConfig
from sam2_3dmed.inference.predictor import slice_logits
from sam2_3dmed.inference.tta import Forward
from sam2_3dmed.model.memory_attention import KeyValues
from sam2_3dmed.model.memory_bank import CAPACITY, Memory, SelfSortingBank, embedding_of
from sam2_3dmed.model.weights import load_sam2, read_sam2


def arrow(*degrees: float) -> Tensor:
    """(B, 2): directions in a plane, whose cosines can be done by hand."""
    turns = torch.tensor([math.radians(angle) for angle in degrees])
    return torch.stack([turns.cos(), turns.sin()], dim=-1)


def memory(*degrees: float, iou: float = 0.9, number: float = 0.0, faces: tuple[float, ...] | None = None) -> Memory:
    """A memory of one place and two channels for each row; number: what it gives to read; faces: its embedding."""
    rows = len(degrees)
    tokens = torch.full((rows, 1, 2), float(number))
    spatial, embedding = arrow(*degrees).unsqueeze(1), arrow(*(faces or degrees))
    confidence = torch.full((rows,), iou)
    return Memory(spatial, (KeyValues(tokens, -tokens),), torch.zeros(rows, 2), confidence, embedding)


def filled(*degrees: float, capacity: int | None = None) -> SelfSortingBank:
    bank = SelfSortingBank(100, capacity=capacity or len(degrees))
    for number, angle in enumerate(degrees):
        bank.append(memory(angle, number=float(number)))
    return bank


def numbers(bank: SelfSortingBank, row: int = 0) -> list[int]:
    return [int(entry.key_values[0].keys[row, 0, 0]) for entry in bank.entries]


class TestWhoStays:
    def test_all_until_it_is_full(self) -> None:
        bank = filled(0, 0, 0, 0, capacity=5)  # however alike
        assert (numbers(bank), bank.count) == ([0, 1, 2, 3], 4)

    def test_the_twin_of_what_is_furthest_from_the_new_one_gives_way(self) -> None:
        bank = filled(0, 10, 90)
        bank.append(memory(180, number=7))  # furthest: 0 degrees (cosine -1); its twin is at 10 (0.98)
        assert numbers(bank) == [0, 7, 2]
        bank.append(memory(45, number=8))  # of 0, 180, 90: furthest 180 (-0.71); its nearest is 90 (0.00)
        assert numbers(bank) == [0, 7, 8]
        assert bank.count == 5

    def test_no_one_if_the_new_one_adds_no_diversity(self) -> None:
        bank = filled(0, 90)
        bank.append(memory(45, number=7))  # 0.71 from both, which have 0 from each other
        assert numbers(bank) == [0, 1]
        bank = filled(30, 30, 30)
        bank.append(memory(30, number=7))  # 1 is not less than 1
        assert numbers(bank) == [0, 1, 2]

    @pytest.mark.parametrize(("iou", "expected"), [(0.95, 7), (0.81, 7), (0.79, 1)])
    def test_a_new_one_may_be_a_little_less_confident_but_no_more(self, iou: float, expected: int) -> None:
        bank = filled(0, 10, 90)  # each of 0.9
        bank.append(memory(180, number=7, iou=iou))
        assert numbers(bank) == [0, expected, 2]

    def test_only_the_one_that_would_go_is_compared_in_confidence(self) -> None:
        bank = SelfSortingBank(100, capacity=3)
        for angle, iou in ((0, 0.9), (10, 0.2), (90, 0.9)):
            bank.append(memory(angle, iou=iou))
        bank.append(memory(180, number=7, iou=0.15))
        assert numbers(bank)[1] == 7

    def test_each_row_of_a_batch_by_itself(self) -> None:
        bank = SelfSortingBank(100, capacity=3)
        for number, angles in enumerate([(0, 30), (10, 30), (90, 30)]):
            bank.append(memory(*angles, number=number))
        bank.append(memory(180, 30, number=7))
        assert (numbers(bank, 0), numbers(bank, 1)) == ([0, 7, 2], [0, 1, 2])
        torch.testing.assert_close(bank.entries[1].spatial[:, 0], arrow(180, 30))
        torch.testing.assert_close(bank.entries[1].embedding, arrow(180, 30))

    def test_it_holds_sixteen(self) -> None:
        bank = SelfSortingBank(100)
        for number in range(40):
            bank.append(memory(37.0 * number, number=number))
        assert len(bank.entries) == CAPACITY == 16
        assert bank.count == 40

    def test_a_copy_stays_as_it_is(self) -> None:
        bank = filled(0, 10, 90)
        before = bank.snapshot()
        bank.append(memory(180, number=7))
        assert (numbers(before), before.count) == ([0, 1, 2], 3)


class TestReading:
    def test_one_memory_is_read_as_it_is(self) -> None:
        bank = filled(0, capacity=16)
        (read,) = bank.read(torch.rand(1, 2, 1, 1))
        torch.testing.assert_close(read, bank.entries[0].key_values[0])

    def test_as_often_as_it_is_alike(self) -> None:
        """Cosines 1 and -1: e / (e + 1/e) = 0.881 of the draws take the first."""
        bank = SelfSortingBank(10)
        bank.append(memory(0, number=1))
        bank.append(memory(180, number=0))
        taken = []
        for draw in range(1000):
            bank.draw = draw
            (read,) = bank.read(arrow(0).view(1, 2, 1, 1))
            assert read.keys.shape == (1, 2, 2)
            torch.testing.assert_close(read.values, -read.keys)
            taken.append(read.keys[0, :, 0].mean())
        assert float(torch.stack(taken).mean()) == pytest.approx(math.e / (math.e + 1 / math.e), abs=0.02)

    def test_a_draw_repeats_and_others_differ(self) -> None:
        bank = filled(0, 45, 90, 135, capacity=16)
        query = torch.rand(1, 2, 1, 1)
        reads = {}
        for draw in range(20):
            bank.draw = draw
            reads[draw] = bank.read(query)[0].keys
            torch.testing.assert_close(bank.read(query)[0].keys, reads[draw], rtol=0, atol=0)
        assert len({tuple(keys.flatten().tolist()) for keys in reads.values()}) > 5

    def test_a_row_does_not_depend_on_the_others(self) -> None:
        both, alone = SelfSortingBank(10), SelfSortingBank(10)
        for number, (first, second) in enumerate([(0, 20), (120, 90), (240, 200)]):
            both.append(memory(first, second, number=number))
            alone.append(memory(second, number=number))
        queries = arrow(5, 100).view(2, 2, 1, 1)
        torch.testing.assert_close(both.read(queries)[0].keys[1:], alone.read(queries[1:])[0].keys)


@pytest.fixture
def network(nano, open_paths):
    def make(**switches):
        return open_paths(nano(**{"memory": "self_sorting", "srpp": False, "boundary": False} | switches))

    return make


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("parts", [False, True])
def test_a_batch_equals_its_slabs_one_by_one(network, slab, num_classes: int, parts: bool) -> None:
    made = network(num_classes=num_classes, srpp=parts, boundary=parts, memory_pooling=1 + parts)
    slabs = slab(batch=2, depth=6)
    with torch.no_grad():
        both = made(slabs).segmentation
        assert both.shape == (2, num_classes, 6, 16, 16)
        for row in range(2):
            alone = made(slabs[row : row + 1]).segmentation
            torch.testing.assert_close(both[row : row + 1], alone, atol=1e-4, rtol=1e-4)


def test_gradients_reach_what_was_remembered_and_not_what_decides(network, slab) -> None:
    made = network(num_classes=2).train()
    made(slab(batch=2, depth=4)).segmentation[:, :, -1].sum().backward()
    decoder = made.segmentation
    for part in (decoder.memory_encoder, decoder.memory_attention, decoder.class_memory, made.encoder):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())
    trains = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    still = {name for name, p in made.segmentation.named_parameters() if p.requires_grad and p.grad is None}
    assert not [name for name in still if "memory" in name or "pointer" in name or "iou_prediction" in name]
    assert not [name for name in trains if "iou_prediction" in name or "object_pointer" in name]


def test_gradients_with_checkpointing_are_those_without(network, slab) -> None:
    made, slabs, found = network().train(), slab(batch=2, depth=5), []
    for checkpointing in (False, True):
        made.save_memory(activation_checkpointing=checkpointing, slices_at_once=None)
        made.zero_grad()
        made(slabs).segmentation.square().mean().backward()
        found.append([None if p.grad is None else p.grad.clone() for p in made.parameters()])
    for plain, again in zip(*found, strict=True):
        assert (plain is None) == (again is None)
        if plain is not None:
            torch.testing.assert_close(plain, again, atol=1e-6, rtol=1e-4)


def test_training_draws_anew_each_step_and_prediction_never(network, slab) -> None:
    made, slabs = network(), slab(depth=6)
    with torch.no_grad():
        evaluated, trained = [], []
        for draw in (0, 1, 1):
            made.draw = draw
            evaluated.append(made.eval()(slabs).segmentation)
            trained.append(made.train()(slabs).segmentation)
    assert torch.equal(evaluated[0], evaluated[1])
    assert torch.equal(trained[1], trained[2])
    assert not torch.equal(trained[0], trained[1])


@pytest.mark.parametrize("mode", ["slabs", "stream"])
def test_predictions_of_a_long_stack_repeat(network, mode) -> None:
    made = network().eval()
    slices = torch.rand(20, 1, 40, 40, generator=torch.Generator().manual_seed(3)).numpy()  # more than the bank holds
    config = InferenceConfig(mode=mode, flips=True)
    first, again = (dict(slice_logits(Forward(made, slices, config), 4)) for _ in range(2))
    assert sorted(first) == list(range(20))
    assert all(torch.equal(first[index], again[index]) for index in first)


def test_sam2s_head_of_predicted_ious_is_loaded(network, hf_folder, upstream) -> None:
    made = network(num_classes=2)
    load_sam2(made, read_sam2(hf_folder))
    tokens = torch.rand(2, made.segmentation.channels)
    expected = upstream.mask_decoder.iou_prediction_head(tokens)
    torch.testing.assert_close(made.segmentation.mask_decoder.iou_prediction_head(tokens), expected)


def test_the_confidence_is_the_heads_first_number_for_the_iou_token(network, slab) -> None:
    made = network(num_classes=3)
    features = made.encoder(slab(batch=2, depth=1))
    fine = made.segmentation.project(features)
    decoder, seen = made.segmentation.mask_decoder, []
    decoder.iou_prediction_head.register_forward_hook(lambda _, given, answer: seen.append((given[0], answer)))
    found = decoder(features.z[:, 0], fine.stride8[:, 0], fine.stride4[:, 0])
    ((token, answer),) = seen
    assert answer.shape == (2, 4)
    assert token.shape == (2, made.segmentation.channels)
    torch.testing.assert_close(found.confidence, answer[:, 0])
    assert not found.confidence.requires_grad
    assert embedding_of(features.z[:, 0]).norm(dim=1).tolist() == pytest.approx([1, 1])
