"""Whether slabs of made-up anatomy come faster than pre-training takes them, on one core.

    python benchmarks/synthesis.py
    python benchmarks/synthesis.py --steps 20 --set model.memory=recent

A training step of the preset `pretrain` with nano, and the making of as many slabs as it takes, in turns in one process
of one thread. Seconds are those of a processor, and the ratio is of their medians.
"""

import argparse
import time
from statistics import median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--set", action="append", help="section.key=value of the recipe")
    arguments = parser.parse_args()

    import torch

    from sam2_3dmed.config import read_recipe, with_settings
    from sam2_3dmed.data.slabs import SampleKey
    from sam2_3dmed.model.build import build_network
    from sam2_3dmed.training.losses import TotalLoss
    from sam2_3dmed.training.optimizer import make_optimizer
    from sam2_3dmed.training.prompted_slabs import PromptedDataset, collate
    from sam2_3dmed.training.slab_training import training_step

    torch.set_num_threads(1)
    recipe = with_settings(read_recipe("pretrain", from_scratch=True), ["model.size=nano", *(arguments.set or [])])
    torch.manual_seed(0)
    network, loss = build_network(recipe.model, 1), TotalLoss(recipe.loss)
    optimizer = make_optimizer(network, recipe.training, [])
    batch_size, depth = recipe.training.batch_size, recipe.slab_slices or 24
    dataset = PromptedDataset(depth, network.encoder.image_size, batch_size, seed=0)
    making, learning = [], []
    for step in range(arguments.steps + 1):
        started = time.process_time()
        batch = collate([dataset[SampleKey(0, step * batch_size + number)] for number in range(batch_size)])
        made = time.process_time()
        optimizer.zero_grad()
        training_step(network, loss, batch, 1)["total"].backward()
        optimizer.step()
        if step > 0:  # the first step is slower than those that follow
            making.append(made - started)
            learning.append(time.process_time() - made)
    made, learnt = median(making), median(learning)
    print(f"{batch_size} slabs of {depth} slices: made in {made:.3f} seconds, learnt from in {learnt:.3f}")
    print(f"slabs are made {learnt / made:.2f} times as fast as one core learns from them")


if __name__ == "__main__":
    main()
