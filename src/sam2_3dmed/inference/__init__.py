"""From a volume to its mask with a trained network."""
