"""What a scan is: its array and its place in the world, its files, its slices."""

from sam2_3dmed.volume.volume import Volume

__all__ = ["Volume"]
