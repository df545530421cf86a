"""Volumes: an array of voxels and its place in the world, files, slices, and intensities for the network.

`Volume` is the public face: it reads and writes its files itself.
"""

from sam2_3dmed.volume.volume import Volume

__all__ = ["Volume"]
