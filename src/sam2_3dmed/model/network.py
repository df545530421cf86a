"""SAM2-3dMed, the whole network (paper 3, Figure 2): slices in, masks, boundaries and relative positions out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sam2_3dmed.encoders.image_encoder import Features, ImageEncoder
from sam2_3dmed.model.boundary import BoundaryDetector
from sam2_3dmed.model.mask_decoder import Upscaled
from sam2_3dmed.model.memory_bank import Bank
from sam2_3dmed.model.prompts import Prompts, first_prompted
from sam2_3dmed.model.slice_decoder import DecodedSlice, SliceDecoder
from sam2_3dmed.model.slice_mixing import Chunk, SliceMixer, in_slabs
from sam2_3dmed.model.srpp import SliceRelativePositionPredictor, zero_conv


class Prediction(NamedTuple):
    """The output of the network for slabs. Logits are at stride 4; resize them bilinearly to H x W."""

    segmentation: Tensor  # P_seg, logits (B, K, D, H/4, W/4)
    boundary: Tensor | None  # P_bd, logits (B, K, D, H/4, W/4); None without BD
    relative_position: Tensor | None  # P_pos, (B, D, D) in slices; None without SRPP


class DecoderFeatures(NamedTuple):
    """The input of the decoders: the encoder's features, with the finer levels projected by each branch.

    The projections make a slice five times smaller. The features of a single slice lack the dimension D.
    """

    z: Tensor  # (B, D, C, h, w)
    stride8: Tensor  # (B, D, C/4, 2h, 2w)
    stride4: Tensor  # (B, D, C/8, 4h, 4w)
    boundary_stride8: Tensor | None = None  # As `stride8`, for the boundary branch; None without BD
    boundary_stride4: Tensor | None = None
    points: Tensor | None = None  # (B, D, K, P, 3), see `Prompts`; None for a network without prompts
    masks: Tensor | None = None  # (B, D, K, 4h, 4w), the share that a mask as prompt has in each place

    @property
    def prompts(self) -> Prompts | None:
        """The prompts of the slices, if there are any."""
        return None if self.points is None else Prompts(self.points, self.masks)

    def with_prompts(self, prompts: Prompts | None) -> Self:
        """The same features with other prompts, whose masks have H and W of the slices."""
        if prompts is None:
            return self
        masks = None if prompts.masks is None else F.avg_pool2d(prompts.masks.flatten(0, 1), 4)
        return self._replace(
            points=prompts.points, masks=None if masks is None else masks.unflatten(0, self.z.shape[:2])
        )

    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""
        return [tensor for tensor in self if tensor is not None]

    def with_tensors(self, tensors: Iterable[Tensor]) -> Self:
        """The same structure with other tensors, in the order of `tensors()`."""
        rest = iter(tensors)
        return type(self)(*(None if old is None else next(rest) for old in self))  # type: ignore[arg-type]

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply the same change to every tensor."""
        return self.with_tensors(map(change, self.tensors()))

    def at(self, index: int) -> Self:
        """Slice `index` of every slab."""
        return self.each(lambda tensor: tensor[:, index])

    def between(self, start: int, stop: int | None) -> Self:
        """Some consecutive slices of every slab."""
        return self.each(lambda tensor: tensor[:, start:stop])

    @classmethod
    def cat(cls, parts: Sequence[Self], dim: int = 0) -> Self:
        """Several as one, along a dimension."""
        columns = zip(*(part.tensors() for part in parts), strict=True)
        return parts[0].with_tensors(torch.cat(column, dim) for column in columns)


class DecoderState(NamedTuple):
    """The memory banks of the two branches during one pass."""

    segmentation: Bank
    boundary: Bank | None = None


class SAM2For3dMed(nn.Module):
    """Encoder, SRPP, BD and segmentation decoder. Paper: 3.1 to 3.3.

    Args:
        srpp, boundary: None drops the part (Tables 4 and 5).
        mixer: of Z, for decoders that mix slices, too.
        box_every: the network takes a box around each class on every so many slices of a volume; 0: none.
        promptable: it takes points, boxes and masks on any slices.

    Attributes:
        activation_checkpointing: see `save_memory`.
        draw: seed of the random numbers of a self-sorting memory in training. Each step has its own, so that it can be
            repeated. Prediction always takes 0.
    """

    activation_checkpointing = False
    draw = 0

    def __init__(
        self,
        *,
        encoder: ImageEncoder,
        segmentation: SliceDecoder,
        srpp: SliceRelativePositionPredictor | None,
        boundary: BoundaryDetector | None,
        mixer: SliceMixer | None = None,
        box_every: int = 0,
        promptable: bool = False,
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.box_every = box_every
        self.promptable = promptable
        self.encoder = encoder
        self.srpp = srpp
        self.boundary = boundary
        self.segmentation = segmentation
        # From zero: at step 0 the segmentation is SAM2's own.
        self.boundary_to_segmentation = None if boundary is None else zero_conv(segmentation.channels)

    def forward(self, slices: Tensor, prompts: Prompts | None = None) -> Prediction:
        """Predict slabs (B, D, 1 to 3, H0, W0) in [0, 1], with the prompts (B, D, ...) of a network that takes them."""
        return self.decode(self.encoder(slices), prompts)

    def decode(self, features: Features, prompts: Prompts | None = None, *, pre_fpn: bool = False) -> Prediction:
        """Predict slabs from the encoder's features; pre_fpn: from `ImageEncoder.pre_fpn_features`."""
        return self.decode_slabs(self.project(features, pre_fpn=pre_fpn).with_prompts(prompts))

    def project(self, features: Features, *, pre_fpn: bool = False) -> DecoderFeatures:
        """The encoder's features as the decoders take them, without prompts."""
        laterals = self.encoder.laterals if pre_fpn else (None, None)
        fine = [level for decoder in self.decoders for level in decoder.project(features, *laterals)[1:]]
        return DecoderFeatures(features.z, *fine)

    def decode_slabs(self, features: DecoderFeatures) -> Prediction:
        """Predict slabs of D slices: SRPP's context first, then slice by slice, or all at once without memory."""
        depth = features.z.shape[1]
        if self.mixer is not None:
            features = features._replace(z=self._compute(self.mixer, features.z))
        context, relative_position = self.slice_context(features.z)
        if self.has_memory and depth > 1:
            outputs = self.decode_in_turn(features, context)
        else:
            outputs = self.decode_at_once(features, context)
        if self.mixer is not None:
            stacks = (Upscaled(*outputs[start : start + 3]) for start in range(0, len(outputs), 3))
            mixing = [decoder.mask_decoder.mixed_logits for decoder in self.decoders]
            outputs = [self._compute(mix, stack) for mix, stack in zip(mixing, stacks, strict=True)]
        segmentation, *boundary = (logits.transpose(1, 2) for logits in outputs)
        return Prediction(segmentation, boundary[0] if boundary else None, relative_position)

    def decode_in_turn(self, features: DecoderFeatures, context: Tensor) -> list[Tensor]:
        """The outputs of `step` for all slices, (B, D, ...), from the first to the last.

        A promptable network begins at the first prompted slice, and goes to one end and then to the other.
        """
        depth, prompts = context.shape[1], features.prompts
        first = first_prompted(prompts) if self.promptable and prompts is not None else 0
        found: dict[int, list[Tensor]] = {}
        for order in (range(first, depth), range(first, -1, -1)) if first else (range(depth),):
            state = self.start(depth)
            found |= {i: self.step(state, features.at(i), context[:, i]) for i in order}
        return [torch.stack(of_slices, dim=1) for of_slices in zip(*map(found.get, range(depth)), strict=True)]

    def decode_at_once(self, features: DecoderFeatures, context: Tensor) -> list[Tensor]:
        """The outputs of `step` for all slices, (B, D, ...), of a network without memory, or of slabs of one slice."""
        flat = [tensor.flatten(0, 1) for tensor in (context, *features.tensors())]
        size = self.encoder.slices_at_once if self._checkpoints else None
        lots = zip(*(tensor.split(size or len(tensor)) for tensor in flat), strict=True)
        parts = [self.step(self.start(1), features.with_tensors(rest), first) for first, *rest in lots]
        outputs = parts[0] if len(parts) == 1 else [torch.cat(of_lots) for of_lots in zip(*parts, strict=True)]
        return [tensor.unflatten(0, context.shape[:2]) for tensor in outputs]

    def mixed_stream(self, chunks: Iterable[DecoderFeatures], size: int) -> Iterator[list[DecoderFeatures]]:
        """The features (B, n, ...) of a whole stack after slice mixing, in lists of parts, `size` slices a list."""
        latest: DecoderFeatures

        def tensors() -> Iterator[Chunk]:
            nonlocal latest
            for latest in chunks:
                yield latest.tensors()

        def with_names(slab: list[Chunk]) -> list[DecoderFeatures]:
            return [latest.with_tensors(chunk) for chunk in slab]

        return map(with_names, in_slabs(tensors() if self.mixer is None else self.mixer.stream(tensors()), size))

    def logits_stream(
        self, outputs: Iterable[Chunk], *, boundary: bool = True
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """P_seg and P_bd (B, K, n, 4h, 4w) of a whole stack, from chunks (B, n, ...) of the outputs of `step`.

        boundary: whether P_bd is asked for; slice mixing for it is a tenth of the time of a stream.
        """
        decoders = self.decoders if boundary else [self.segmentation]
        if self.mixer is not None:
            outputs = (chunk[: len(Upscaled._fields) * len(decoders)] for chunk in outputs)
            for decoder in decoders:
                outputs = decoder.mask_decoder.mixed_stream(outputs)
        for chunk in outputs:
            segmentation, *others = (logits.transpose(1, 2) for logits in chunk)
            yield segmentation, others[0] if others else None

    def slice_context(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """The context (B, D, C, h, w) that slices give each other, and P_pos (B, D, D); without SRPP z and None."""
        if self.srpp is None:
            return z, None
        context, relative_position = self._compute(self.srpp, z)
        return context, relative_position

    def start(self, num_slices: int) -> DecoderState:
        """Empty memories for a pass of `num_slices` calls of `step`: a slab, or a whole volume."""
        draw = self.draw if self.training else 0
        return DecoderState(*(decoder.start(num_slices, draw) for decoder in self.decoders))

    def step(self, state: DecoderState, features: DecoderFeatures, context: Tensor) -> list[Tensor]:
        """Decode the next slice of a pass, and add its memories to `state` where later slices read them.

        The features lack the dimension D, and so does the slice's part of `slice_context`, (B, C, h, w).

        Returns:
            Logits (B, K, 4h, 4w) of the masks, and of the boundaries if there is BD. With slice mixing, the tensors of
            an `Upscaled` for each instead.
        """
        decoded = self._compute(self._decode_slice, self._to_read(state), features, context)
        for bank, found in zip(state, decoded, strict=True):
            if bank is not None and found.memory is not None:
                bank.append(found.memory)
        found = [of_decoder for of_decoder in decoded if of_decoder is not None]
        if self.mixer is None:
            return [of_decoder.logits for of_decoder in found]
        return [tensor for of_decoder in found for tensor in of_decoder.upscaled]

    def _decode_slice(
        self, state: DecoderState, features: DecoderFeatures, context: Tensor
    ) -> tuple[DecodedSlice, DecodedSlice | None]:
        """Decode one slice, and leave the state unchanged, so that the slice can be computed a second time."""
        z, stride8, stride4, *boundary_fine = features[:5]
        prompts = features.prompts
        attended = z_seg = self.segmentation.attend(context, state.segmentation)
        boundary = None
        if self.boundary is not None and self.boundary_to_segmentation is not None:
            boundary = self.boundary(context, Features(z, *boundary_fine), state.boundary, prompts)  # type: ignore[arg-type]
            z_seg = z_seg + self.boundary_to_segmentation(boundary.features)
        fine = Features(z, stride8, stride4)
        return self.segmentation.finish(z_seg, attended, fine, state.segmentation, prompts), boundary

    @property
    def decoders(self) -> list[SliceDecoder]:
        """The slice decoder of the segmentation, and that of BD if there is one."""
        return [self.segmentation] if self.boundary is None else [self.segmentation, self.boundary.decoder]

    @property
    def has_memory(self) -> bool:
        """Whether a slice reads the memories of the slices before it."""
        return self.segmentation.has_memory

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.segmentation.no_memory_embedding.device

    @property
    def needs_reference(self) -> bool:
        """Whether prediction needs a reference mask, to draw boxes around its classes."""
        return self.box_every > 0 or self.promptable

    def save_memory(self, *, activation_checkpointing: bool, slices_at_once: int | None) -> None:
        """Train with less memory and the same gradients, in more time.

        Args:
            activation_checkpointing: keep only the inputs and outputs of SRPP, of slice mixing, of every slice and of
                a training encoder, and compute the rest again in the backward pass.
            slices_at_once: encode so many together, and decode so many where none has memories to read; None: all.
        """
        self.activation_checkpointing = self.encoder.activation_checkpointing = activation_checkpointing
        self.encoder.slices_at_once = slices_at_once

    @property
    def _checkpoints(self) -> bool:
        return self.activation_checkpointing and torch.is_grad_enabled()

    def _compute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function, which is called again in the backward pass if activations are checkpointed."""
        if not self._checkpoints:
            return function(*arguments)
        # Nothing here draws random numbers, so there is no random state to keep.
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)

    def _to_read(self, state: DecoderState) -> DecoderState:
        """The state for a slice to read. With checkpointing a copy, since the backward pass reads it again."""
        if not self._checkpoints:
            return state
        banks = (bank for bank in state if bank is not None)
        return DecoderState(*(decoder.snapshot(bank) for decoder, bank in zip(self.decoders, banks, strict=True)))
