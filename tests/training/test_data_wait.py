"""What counts as waiting for the loader: the time before each batch of an epoch, and nothing else."""

import logging
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

from sam2_3dmed.training.data_wait import LoaderShare
from sam2_3dmed.training.trainer import quiet_lightning


class Clock:
    """Time passes only where something is said to take it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Rows(Dataset[int]):
    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> int:
        self.clock.now += self.seconds
        return number


class Module(lightning.LightningModule):
    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.clock, self.seconds = clock, seconds

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.clock.now += self.seconds
        return self.weight.square()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.clock.now += 100

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Slow(Callback):
    """Stands for checkpoints and curves."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_epoch_end(self, *_: object) -> None:
        self.clock.now += 1000


@pytest.mark.parametrize(("loading", "working", "share"), [(1, 0, 1), (0, 1, 0), (1, 4, 1 / 3), (1, 38, 0.05)])
def test_share_of_the_loader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, loading: float, working: float, share: float
) -> None:
    """A batch is two rows. Validation and the ends of epochs take much longer, and must not count."""
    clock = Clock()
    log = CSVLogger(tmp_path, name="", version="")
    with quiet_lightning(), caplog.at_level(logging.INFO):
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=log,
            log_every_n_steps=1,
            callbacks=[LoaderShare(clock), Slow(clock)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
        )
        training, validation = (DataLoader(Rows(clock, seconds), batch_size=2) for seconds in (loading, 100))
        trainer.fit(Module(clock, working), training, validation)
    header, *rows = (tmp_path / "metrics.csv").read_text().split()
    found = [float(row.split(",")[header.split(",").index("loader_share")]) for row in rows]
    assert found == pytest.approx([share, share])
    assert f"waiting for slabs took {100 * share:.1f}% of training" in caplog.text
    assert ("more training.workers" in caplog.text) == (share > 0.1)
