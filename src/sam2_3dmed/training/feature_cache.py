"""Features of a frozen encoder, computed once for every slice of an augmented view (docs/notes/feature_cache.md)."""

import json
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from isal import isal_zlib
from numpy.typing import NDArray
from torch import Tensor

from sam2_3dmed.config import FeatureCacheConfig, TrainingConfig
from sam2_3dmed.data.slabs import View, ViewDataset, ViewSlabs
from sam2_3dmed.encoders.image_encoder import Features, ImageEncoder
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.processes.atomic import replacing

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_AT_ONCE_ON_A_GPU = 16
_CHECKSUM_BYTES = 4

logger = logging.getLogger(__name__)


class _Place(NamedTuple):
    """A slice of a view."""

    view: View
    slice: int


def _checksum(content: NDArray[np.uint8]) -> bytes:
    """At the end of each file, since damage may leave a file its length."""
    return int(isal_zlib.crc32(content)).to_bytes(_CHECKSUM_BYTES, "little")


def require_frozen(encoder: ImageEncoder) -> None:
    """Raise ConfigError for an encoder that trains, since its features change from step to step."""
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        raise ConfigError(
            "feature_cache.views: features can be kept only of a frozen encoder, and this one trains; "
            "set feature_cache.views=0, or training.encoder=frozen"
        )


class FeatureCache:
    """Looks up the features of slabs; computes and keeps missing ones.

    A slice's features depend on nothing but the encoder, the view and the slice, so it does not matter when, in which
    process or how often they are computed. They are kept in memory within the budget, else in files below `folder`.
    """

    def __init__(self, encoder: ImageEncoder, views: ViewDataset, config: FeatureCacheConfig, folder: Path) -> None:
        require_frozen(encoder)
        self.encoder = encoder
        self.views = views
        self.config = config
        self.folder = Path(config.folder or folder)
        self._dtype = _DTYPES[config.dtype]
        self._shapes = encoder.pre_fpn_shapes
        self._sizes = [math.prod(shape) for shape in self._shapes]
        self._memory: dict[_Place, Tensor] = {}
        self._newest: dict[int, int] = {}
        self._num_asked = self._num_made = 0

    @property
    def bytes_per_slice(self) -> int:
        """What a slice takes."""
        return sum(self._sizes) * self._dtype.itemsize

    @property
    def num_slices(self) -> int:
        """In all views that there are at a time."""
        return self.config.views * sum(case.num_slices for case in self.views.cases)

    def __call__(self, slabs: ViewSlabs) -> Features:
        """The `ImageEncoder.pre_fpn_features` of these slabs, rounded to the type of the cache."""
        rows = [View(*row) for row in slabs.views.tolist()]
        positions = zip(rows, slabs.positions.tolist(), strict=True)
        places = [_Place(view, index) for view, indices in positions for index in indices]
        self._forget_what_was_before(rows)
        kept = {place: self._look_up(place) for place in dict.fromkeys(places)}
        missing = [place for place, found in kept.items() if found is None]
        kept.update(self._make(missing))
        self._num_asked += len(kept)
        self._num_made += len(missing)
        flat = [found for found in map(kept.get, places) if found is not None]
        return self._features(flat, slabs.positions.shape)

    def describe(self, training: TrainingConfig) -> None:
        """Log the size, and how much of the encoder's work is left; warn where that is most of it."""
        views = self.views.num_generations(training.epochs)
        slabs = training.epochs * (training.samples_per_epoch or len(self.views.cases))
        uses = slabs * self.views.slab_slices / (self.num_slices / self.config.views * views)
        share = (1 - math.exp(-uses)) / uses  # of draws that are a slice's first, if all are drawn equally often
        logger.info(
            "feature cache: %d views of a case at a time, %d in all; %.1f MB a slice, at most %.1f GB at a time; "
            "a slice of a view is seen about %.1f times, so the encoder computes %.0f%% of what it would",
            *(self.config.views, views, self.bytes_per_slice / 1e6),
            *(self.num_slices * self.bytes_per_slice / 1e9, uses, 100 * share),
        )
        if share > 0.5:
            logger.warning("feature cache: it saves little here; fewer views or a longer life of each would save more")

    def close(self) -> None:
        """Log what it saved, and remove the files that no other run shares."""
        self._memory.clear()
        if self._num_asked:
            logger.info("feature cache: %.1f%% of slices were there", 100 - 100 * self._num_made / self._num_asked)
        if self.config.folder is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _look_up(self, place: _Place) -> Tensor | None:
        found = self._memory.get(place)
        if found is not None or not self.folder.is_dir():
            return found
        file = self._file(place)
        try:
            if file.stat().st_size != self.bytes_per_slice + _CHECKSUM_BYTES:  # a power cut can leave less
                return None
        except FileNotFoundError:
            return None
        # Copy-on-write, since torch warns of memory that it must not write to.
        content = np.memmap(file, dtype=np.uint8, mode="c")
        flat, written = content[:-_CHECKSUM_BYTES], bytes(content[-_CHECKSUM_BYTES:])
        return torch.from_numpy(flat).view(self._dtype) if _checksum(flat) == written else None

    def _make(self, places: Sequence[_Place]) -> Iterator[tuple[_Place, Tensor]]:
        device = self.encoder.mean.device
        # One by one on a CPU: in a larger batch the last digits could be others, and a resumed run another one.
        at_once = 1 if device.type == "cpu" else _AT_ONCE_ON_A_GPU
        for start in range(0, len(places), at_once):
            batch = places[start : start + at_once]
            slices = torch.stack([self.views.slice(*place, device) for place in batch]).unsqueeze(1)
            levels = self.encoder.pre_fpn_features(slices)
            flat = torch.cat([level.permute(0, 1, 3, 4, 2).flatten(1) for level in levels], dim=1)
            rounded = flat.to(self._dtype).cpu()
            if self._dtype is torch.float16 and not rounded.isfinite().all():
                raise ConfigError("feature_cache.dtype: these features exceed what fp16 can hold; set it to bf16")
            for place, row in zip(batch, rounded, strict=True):
                found = row.clone()
                self._keep(place, found)
                yield place, found

    def _keep(self, place: _Place, flat: Tensor) -> None:
        if (len(self._memory) + 1) * self.bytes_per_slice <= self.config.budget_gb * 1e9:
            self._memory[place] = flat
            return
        file = self._file(place)
        file.parent.mkdir(parents=True, exist_ok=True)
        content = flat.view(torch.uint8).numpy()
        with replacing(file) as stream:
            stream.write(content.data)
            stream.write(_checksum(content))

    def _features(self, flat: Sequence[Tensor], batch: torch.Size) -> Features:
        device = self.encoder.mean.device
        working = torch.get_autocast_dtype(device.type) if self._autocast else self.encoder.mean.dtype
        levels = []
        for number, (height, width, channels) in enumerate(self._shapes):
            start = sum(self._sizes[:number])
            level = torch.stack([row[start : start + self._sizes[number]] for row in flat]).to(device).to(working)
            levels.append(level.view(*batch, height, width, channels).permute(0, 1, 4, 2, 3))
        return Features(*levels)

    def _forget_what_was_before(self, views: Sequence[View]) -> None:
        """Views that have been swapped are not drawn again."""
        for slot, generation in {(view.slot, view.generation) for view in views}:
            if generation <= self._newest.get(slot, -1):
                continue
            self._newest[slot] = generation
            for view, index in list(self._memory):
                if view.slot == slot and view.generation < generation:
                    del self._memory[_Place(view, index)]
            if self.config.folder is None:
                for old in range(generation):
                    shutil.rmtree(self.folder / f"{slot}-{old}", ignore_errors=True)

    def _file(self, place: _Place) -> Path:
        """Named after all that the features depend on, so that no file can be out of date."""
        case = self.views.cases[place.view.case]
        depends_on = [
            self._encoder_key,
            str(torch.get_autocast_dtype(self.encoder.mean.device.type)) if self._autocast else "",
            self.config.dtype,
            self.views.augmentation.config.model_dump(exclude={"reverse"}),
            case.key,
            self.views.seeds(place.view),
        ]
        key = sha256(json.dumps(depends_on).encode()).hexdigest()[:32]
        return self.folder / f"{place.view.slot}-{place.view.generation}" / key / str(place.slice)

    @cached_property
    def _encoder_key(self) -> str:
        """Its weights, and what else decides what it computes."""
        key = sha256(json.dumps([version("sam2-3dmed"), self.encoder.image_size, self._shapes]).encode())
        for name, tensor in self.encoder.state_dict().items():
            key.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            key.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return key.hexdigest()

    @property
    def _autocast(self) -> bool:
        return torch.is_autocast_enabled(self.encoder.mean.device.type)
