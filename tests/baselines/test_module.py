"""The step of a patch-based system: its optimiser, its schedule, how a batch is divided, how long validation takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from sam2_3dmed.baselines.cache import build_patch_cache
from sam2_3dmed.baselines.networks import build
from sam2_3dmed.baselines.patches import Patches
from sam2_3dmed.baselines.predictor import PatchPredictor
from sam2_3dmed.baselines.recipe import PatchSpec
from sam2_3dmed.baselines.train import PatchTraining, falling_poly
from sam2_3dmed.config import InferenceConfig
from sam2_3dmed.run.systems import find_system
from sam2_3dmed.training.loader import Division
from sam2_3dmed.training.optimizer import make_optimizer


@pytest.fixture(scope="module")
def make_module(balls: Any, make_spec: Callable[..., PatchSpec]) -> Callable[..., PatchTraining]:
    def make(*settings: str, division: Division | None = None) -> PatchTraining:
        config = find_system("unet").recipe(settings=settings)
        torch.manual_seed(0)
        spec = make_spec()
        return PatchTraining(
            PatchPredictor(build(spec), spec, balls.plan, config.inference),
            DataLoader([], batch_sampler=division or Division(samples_per_epoch=10, batch_size=2)),
            validation=balls.cases[:2],
            config=config.training,
        )

    return make


def test_a_rate_that_falls_as_nnunets() -> None:
    assert [falling_poly(progress) for progress in (0.0, 0.5, 1.0, 2.0)] == pytest.approx([1, 0.5**0.9, 0, 0])


def test_the_optimiser_of_the_recipe(make_module: Callable[..., PatchTraining]) -> None:
    module = make_module("training.epochs=4")
    optimizer, schedule = module.configure_optimizers()
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.SGD)
    assert (group["nesterov"], group["momentum"], group["weight_decay"]) == (True, 0.99, 3e-5)
    rates = []
    for _ in range(20):
        rates.append(group["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.01 * (1 - step / 20) ** 0.9 for step in range(20)])
    training = find_system("mednext_s").recipe().training
    assert isinstance(make_optimizer(module.network, training), torch.optim.AdamW)


def test_a_batch_in_parts_is_the_batch(make_module: Callable[..., PatchTraining]) -> None:
    torch.manual_seed(1)
    patch = make_module().predictor.spec.patch
    batch = Patches(torch.randn(4, 1, *patch), torch.randint(0, 3, (4, *patch)).to(torch.uint8))
    losses = []
    for grad_accum_steps in (1, 2):
        module = make_module(
            division=Division(samples_per_epoch=4, batch_size=4, grad_accum_steps=grad_accum_steps)
        ).train()
        parts = [
            Patches(*(tensor[i : i + 4 // grad_accum_steps] for tensor in batch))
            for i in range(0, 4, 4 // grad_accum_steps)
        ]
        steps = []
        for number, part in enumerate(parts):
            module.progress.passes = number
            steps.append(module(part))
        losses.append(torch.stack(steps).mean().item())
        assert set(module.means.compute()) == {"train/total", "train/segmentation"}
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_validation_predicts_whole_cases(make_module: Callable[..., PatchTraining], balls: Any) -> None:
    module = make_module()
    classes, error = module.predict_case(1)
    assert classes.shape == balls.cases[1].cached.label.shape
    assert error != error  # there is no SRPP
    assert module.validation_seconds() > 0
    assert dict(module.parts()) == {"network": module.network}


def test_the_cached_cases_are_what_it_learns_from(
    balls: Any, make_spec: Callable[..., PatchSpec], tmp_path: Path
) -> None:
    """The predictor normalises as the cache does, so training and prediction see the same intensities."""
    spec = make_spec()
    case = build_patch_cache(balls.cases[:1], spec, balls.plan.scheme.indexed, tmp_path)[0]
    predictor = PatchPredictor(build(spec), spec, balls.plan, InferenceConfig(precision="32"))
    seen: list[torch.Tensor] = []
    predictor.network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    predictor.predict_slices(balls.cases[0].cached.image, balls.cases[0].grid.spacing_mm)
    torch.testing.assert_close(seen[0][0], torch.from_numpy(case.image[:].astype("float32")), atol=5e-3, rtol=0)
