"""The processes and devices of a run: who takes part, who waits for whom, and what is gathered from all."""

import atexit
import logging
import os
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric, seed_everything
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy, Strategy
from torch import distributed

from sam2_3dmed.errors import ConfigError

T = TypeVar("T")

# For the first process to prepare a large data set, or for one with larger volumes to validate them. A process that
# dies is noticed long before, by whoever started it.
_PATIENCE = timedelta(hours=12)


@dataclass
class DistributedContext:
    """The processes of a run, one for each device, and the place of this one among them."""

    devices: int = 1
    """On each machine."""
    nodes: int = 1
    rank: int = 0
    waiting: bool = False
    """Torchrun or SLURM has started all processes, and the others wait for the first one. Otherwise the first one
    starts the others when training begins."""

    @property
    def size(self) -> int:
        """How many processes."""
        return self.devices * self.nodes

    @property
    def first(self) -> bool:
        """Whether this process prepares, writes and logs."""
        return self.rank == 0

    @classmethod
    def find(cls, devices: int | None = None, nodes: int | None = None) -> "DistributedContext":
        """The processes that were asked for, or the one that torchrun or SLURM has started.

        Raises: ConfigError if they have started another number, or `nodes` machines cannot be reached without them.
        """
        # As Fabric looks for them: torchrun first, since it also runs within SLURM.
        kinds: tuple[type[ClusterEnvironment], ...] = (TorchElasticEnvironment, SLURMEnvironment)
        try:
            environment = next((kind() for kind in kinds if kind.detect()), None)
        except RuntimeError as error:  # SLURM's variables contradict each other; Fabric says how
            raise ConfigError(" ".join(str(error).split())) from None
        if environment is None:
            return cls._of_one_machine(devices or 1, nodes or 1)
        started = environment.world_size()
        if isinstance(environment, SLURMEnvironment):
            name, machines = "SLURM", int(os.environ.get("SLURM_NNODES", 1))
        else:
            name, machines = "torchrun", max(1, started // int(os.environ.get("LOCAL_WORLD_SIZE", started)))
        here = started // machines
        if (devices or here, nodes or machines) != (here, machines):
            raise ConfigError(
                f"{name} has started {started} processes on {machines} machines, which is not "
                f"--devices {devices or here} --nodes {nodes or machines}; leave both out, or have it start as many"
            )
        if started > 1:
            _connect(environment)
        return cls(here, machines, environment.global_rank(), waiting=started > 1)

    @classmethod
    def _of_one_machine(cls, devices: int, nodes: int) -> "DistributedContext":
        if nodes > 1:
            raise ConfigError(f"--nodes {nodes}: start it on every machine, by torchrun or srun")
        there = torch.cuda.device_count()
        if 0 < there < devices:
            raise ConfigError(f"--devices {devices}: this machine has {there} GPU(s)")
        started_by_first = devices > 1 and "LOCAL_RANK" in os.environ
        return cls(devices, rank=int(os.environ["LOCAL_RANK"]) if started_by_first else 0)

    def start_barrier(self, go: bool = True) -> bool:
        """Whether training begins, as the first process decides; once, the others wait here until it does."""
        if not self.waiting:
            return go
        self.waiting = False
        word = [go]
        try:
            distributed.broadcast_object_list(word, src=0)
        except RuntimeError:
            raise ConfigError("the first process of this run has ended; its messages say why") from None
        return word[0]

    def launch(self) -> Fabric:
        """Start the other processes unless they run already, connect to them, and take the device of this one.

        Precision is left to the training loop: Fabric's autocast would keep bf16 copies of the weights, and add up
        their gradients in bf16.
        """
        logging.getLogger("lightning.fabric").setLevel(logging.ERROR)  # it describes the processes at length
        on_gpu = torch.cuda.is_available()
        # On a GPU some backward passes, such as that of bicubic resizing, have no deterministic form.
        torch.use_deterministic_algorithms(True, warn_only=on_gpu)
        torch.backends.cudnn.benchmark = False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS does not repeat its sums
        fabric = Fabric(
            accelerator="gpu" if on_gpu else "cpu",
            devices=self.devices,
            num_nodes=self.nodes,
            strategy=self._strategy(),
            precision="32-true",
        )
        fabric.launch()
        return fabric

    def _strategy(self) -> Strategy | str:
        if self.size == 1:
            return "auto"
        # Of convolutions of one pixel or channel, whose strides have several equal forms.
        warnings.filterwarnings("ignore", ".*Grad strides do not match bucket view strides.*")
        return DDPStrategy(
            timeout=_PATIENCE,
            # Single slices use no memory. A weight that no process has used keeps no gradient, as in one process, and
            # the optimiser leaves it alone.
            find_unused_parameters=True,
            forward_sync_buffers=False,  # they are constants
            gradient_as_bucket_view=True,  # no second copy of the gradients
        )


def seed_all(seed: int) -> None:
    """Fix every random number that building a network draws."""
    seed_everything(seed, workers=True, verbose=False)


def _connect(environment: ClusterEnvironment) -> None:
    """Join the others before training, since they wait for what the first one prepares; `launch` uses this."""
    if distributed.is_initialized():
        return
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(environment.local_rank())
    rank, size = environment.global_rank(), environment.world_size()
    distributed.init_process_group(backend, rank=rank, world_size=size, timeout=_PATIENCE)
    atexit.register(_disconnect)


def _disconnect() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def gather(part: T) -> list[T]:
    """The values of all processes, in the order of their ranks; all must call this."""
    if not distributed.is_initialized():
        return [part]
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, part)
    return parts


def any_of(fabric: Fabric, *flags: bool) -> list[bool]:
    """Each flag as it holds for all processes: set if it is set in one of them; all must call this."""
    if fabric.world_size == 1:
        return list(flags)
    counts = fabric.all_reduce(torch.tensor(flags, dtype=torch.float32, device=fabric.device), reduce_op="sum")
    return [count > 0 for count in counts.tolist()]
