"""Each system's own way of training, and what has no meaning for patches."""

import pytest

from sam2_3dmed.baselines.recipe import PatchConfig
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.run.systems import find_system, system_names


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("unet", ("sgd", "poly", 1e-2, 3e-5)),
        ("nnformer", ("sgd", "poly", 1e-2, 3e-5)),
        ("mednext_l", ("adamw", "poly", 1e-3, 3e-5)),
    ],
)
def test_what_the_authors_did(system: str, expected: tuple) -> None:
    training = find_system(system).recipe().training
    assert (training.optimizer, training.schedule, training.learning_rate, training.weight_decay) == expected
    assert training.epochs * training.samples_per_epoch / training.batch_size == 250_000


def test_every_recipe_survives_yaml() -> None:
    for system in [name for name in system_names() if find_system(name).learns_from_patches]:
        config = PatchConfig(system=system)
        assert PatchConfig.model_validate(config.model_dump(mode="json")) == config


def test_settings() -> None:
    config = find_system("unet").recipe(
        settings=["training.epochs=3", "model.patch=[8, 16, 16]", "inference.overlap=0.25"]
    )
    assert (config.training.epochs, config.model.patch, config.inference.overlap) == (3, (8, 16, 16), 0.25)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("training.layer_decay=0.5", "training: layer_decay: not for systems that learn from patches"),
        ("inference.direction=forward", "inference: direction: not for systems that learn from patches"),
        ("inference.shifts=true", "inference: shifts: not for systems that learn from patches"),
        ("model.kernel=5", "model.kernel is for mednext, not for unet"),
        ("model.text=clip", "model.text is for universal, not for unet"),
        ("model.patch=[0, 8, 8]", "patch and spacing_mm must be positive"),
        ("model.srpp=false", "no such key 'model.srpp'"),
        ("loss.segmentation=bce", "no such key 'loss'"),
    ],
)
def test_what_does_not_apply(setting: str, line: str) -> None:
    with pytest.raises(ConfigError, match=f"^--set: .*{line}"):
        find_system("unet").recipe(settings=[setting])


def test_only_the_unet_has_a_width() -> None:
    assert find_system("unet").recipe(settings=["model.width=16"]).model.width == 16
    with pytest.raises(ConfigError, match=r"model\.width is for unet, not for nnformer"):
        find_system("nnformer").recipe(settings=["model.width=16"])
