"""What a trained model costs: parameters, and for one volume operations, seconds and memory."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from sam2_3dmed.baselines.nnunet.predictor import NnunetPredictor
from sam2_3dmed.data.dataset import read_case, read_dataset
from sam2_3dmed.data.splits import Split
from sam2_3dmed.errors import DataError
from sam2_3dmed.experiments.resource_meter import metered
from sam2_3dmed.run.run_config import RunRecord
from sam2_3dmed.run.run_folder import MODEL_FILE, load_model
from sam2_3dmed.run.train import SPLIT_FILE


def num_parameters(model: Path) -> int:
    """Numbers in a file of weights; what a model keeps beside its parameters, a code of places say, counts too."""
    with safe_open(model, framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def prediction_cost(folder: Path, data: Path) -> dict[str, Any]:
    """Of a run: its parameters, and what its first test case takes to be predicted, once it is read.

    Returns: `case`, its `voxels`, `parameters`, `gflop`, and `seconds` and memory of a second pass. A multiplication
        and an addition count as two operations; matrix products, convolutions and attention are counted, no others.
    Raises:
        UserError: a run that cannot be loaded, or data that cannot be read.
    """
    split = Split.read(folder / SPLIT_FILE)
    case = next((case for case in read_dataset(data).cases if case.name == split.test[0]), None)
    if case is None:
        raise DataError(f"{data}: has no case {split.test[0]}")
    volume, label = read_case(case)
    reference = label if RunRecord.read(folder).takes_boxes else None
    predictor = load_model(folder)
    memory: Sequence[float | None] = ()
    if isinstance(predictor, NnunetPredictor):  # it computes in a process of its own
        gflop, *memory = predictor.cost_of(volume)
    else:
        with counting() as counter:
            predictor(volume, reference=reference)
        gflop = counter.get_total_flops() / 1e9
    with metered() as usage:
        predictor(volume, reference=reference)
    if memory:
        usage.memory_mb, usage.gpu_memory_mb = memory
    return {
        "case": case.name,
        "voxels": math.prod(volume.array.shape[:3]),
        "parameters": num_parameters(folder / MODEL_FILE),
        "gflop": gflop,
        **asdict(usage),
    }


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count operations; torch's counter does not know its own fused attention on CPUs."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={fused: _attention_flop}) as counter:
        yield counter


def _attention_flop(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Shapes (B, heads, N, C): the product of queries and keys, and that of the weights and values."""
    batch, heads, length, channels = query
    return int(2 * batch * heads * length * key[2] * (channels + value[3]))
