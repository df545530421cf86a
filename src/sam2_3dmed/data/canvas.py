"""The canvas of a phantom: a fine grid, soft-edged shapes, and textures.

Coordinates are the patient's, RAS (+x to the right, +y to the front, +z to the head); their unit is half the
width of the field of view. A shape is a signed distance field: negative inside, in the same unit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter

Field = NDArray[np.floating]
"""(X, Y, Z) float32."""

_FAR, _MARGIN = 1.0, 0.1


def smooth_field(rng: np.random.Generator, shape: Sequence[int], knots: Sequence[int]) -> Field:
    """A smooth random field, mean 0 and variance 1, blended from `knots` random values along each axis."""
    field = rng.standard_normal(knots)
    for axis, (size, num_knots) in enumerate(zip(shape, knots, strict=True)):
        position = np.linspace(0, num_knots - 1, size)[:, None] - np.arange(num_knots)
        weights = np.exp(-0.5 * (position / 0.6) ** 2)
        weights /= weights.sum(axis=1, keepdims=True)
        # einsum rather than a matrix product: the same bits for any number of threads
        field = np.moveaxis(np.einsum("ik,k...->i...", weights, np.moveaxis(field, axis, 0)), 0, axis)
    return np.ascontiguousarray((field - field.mean()) / field.std(), dtype=np.float32)


def grain(rng: np.random.Generator, shape: Sequence[int], sigma: float | Sequence[float]) -> Field:
    """Spatially correlated noise of unit standard deviation; sigma in voxels."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap", truncate=3)
    return np.asarray(noise / noise.std(), dtype=np.float32)


def centreline(points: NDArray[np.float64], num_samples: int = 48) -> NDArray[np.float64]:
    """A spline through points (N, 3), N >= 3, sampled evenly in its parameter: (num_samples, 3)."""
    spline = make_interp_spline(np.linspace(0, 1, len(points)), points, k=min(3, len(points) - 1))
    return np.asarray(spline(np.linspace(0, 1, num_samples)))


@dataclass(eq=False)
class Canvas:
    """Patient coordinates x, y, z of every fine voxel, and the Hounsfield units painted so far.

    Args:
        fine_grain: like `coarse_grain`, a texture of unit variance.
        voxel: width of a soft edge, in units.
        half_height: of the volume, in units.
    """

    x: Field
    y: Field
    z: Field
    hu: Field
    fine_grain: Field
    coarse_grain: Field
    voxel: float
    half_height: float

    def coverage(self, distance: Field) -> Field:
        """The part of every voxel inside the shape, 0..1."""
        return np.asarray(np.clip(0.5 - distance / self.voxel, 0, 1))

    def paint(self, distance: Field, hu: float, texture_hu: float = 5.0) -> None:
        """Paint an organ of this intensity and a texture of this standard deviation over the canvas."""
        inside = distance < 0.5 * self.voxel
        painted = self.hu[inside]
        value = hu + 0.7 * texture_hu * (self.fine_grain[inside] + self.coarse_grain[inside])
        self.hu[inside] = painted + self.coverage(distance[inside]) * (value - painted)

    def ellipsoid(self, centre: Sequence[float], radii: Sequence[float], turn: float = 0.0) -> Field:
        """Distance to an ellipsoid, to first order near its surface; turn in radians about z."""
        reach = np.array([max(radii[:2]), max(radii[:2]), radii[2]])
        field, box = self._far(np.subtract(centre, reach), np.add(centre, reach))
        cos, sin = math.cos(turn), math.sin(turn)
        dx, dy, dz = (axis[box] - middle for axis, middle in zip((self.x, self.y, self.z), centre, strict=True))
        a, b, c = (1 / radius for radius in radii)
        p, q, r = (cos * dx + sin * dy) * a, (cos * dy - sin * dx) * b, dz * c
        level = np.sqrt(p * p + q * q + r * r)
        slope = np.sqrt((p * a) ** 2 + (q * b) ** 2 + (r * c) ** 2)
        field[box] = level * (level - 1) / np.maximum(slope, 1e-6)
        return field

    def cylinder(self, centre: tuple[float, float], radii: tuple[float, float], turn: float = 0.0) -> Field:
        """Distance to an elliptic cylinder along z."""
        return self.ellipsoid((*centre, 0.0), (*radii, 50.0), turn)

    def tube(self, line: NDArray[np.float64], radii: ArrayLike) -> Field:
        """Distance to a tube along line (N, 3) of one radius, or of radii (N,)."""
        field, box = self._far(line.min(axis=0) - np.max(radii), line.max(axis=0) + np.max(radii))
        x, y, z, nearest = self.x[box], self.y[box], self.z[box], field[box]
        each = np.broadcast_to(np.asarray(radii, np.float32), len(line))
        for (cx, cy, cz), radius in zip(line.astype(np.float32), each, strict=True):
            np.minimum(nearest, np.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) - radius, out=nearest)
        return field

    def _far(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[Field, tuple[slice, ...]]:
        """A field that is far from everything, and the box of the voxels between low and high, with a margin."""
        box = []
        for (least, most), start, stop in zip(self._extents, low - _MARGIN, high + _MARGIN, strict=True):
            hit = np.flatnonzero((most > start) & (least < stop))
            box.append(slice(hit[0], hit[-1] + 1) if len(hit) else slice(0))
        return np.full(self.hu.shape, _FAR, np.float32), tuple(box)

    @cached_property
    def _extents(self) -> list[tuple[Field, Field]]:
        """The least and the largest coordinate in every plane across each array axis."""
        planes = (np.moveaxis(field, axis, 0) for axis, field in enumerate((self.x, self.y, self.z)))
        return [(plane.min(axis=(1, 2)), plane.max(axis=(1, 2))) for plane in planes]
