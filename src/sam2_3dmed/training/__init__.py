"""How a network learns: targets, losses, the training step, the run."""
