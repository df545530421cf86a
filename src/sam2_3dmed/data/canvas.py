"""The canvas of a phantom: a fine grid, soft-edged shapes, and textures.

Coordinates are the patient's, RAS (+x to the right, +y to the front, +z to the head); their unit is half the
width of the field of view. A shape is a signed distance field: negative inside, in the same unit.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter

Field = NDArray[np.float32]
Point = tuple[float, ...]

_FAR, _MARGIN = 1.0, 0.1


def smooth_field(rng: np.random.Generator, shape: tuple[int, int, int], knots: tuple[int, int, int]) -> Field:
    """A smooth random field, mean 0 and variance 1, blended from `knots` random values along each axis."""
    field = rng.standard_normal(knots)
    for axis, (size, num_knots) in enumerate(zip(shape, knots, strict=True)):
        position = np.linspace(0, num_knots - 1, size)[:, None] - np.arange(num_knots)[None]
        weights = np.exp(-0.5 * (position / 0.6) ** 2)
        weights /= weights.sum(axis=1, keepdims=True)
        # einsum rather than a matrix product: the same bits for any number of threads
        field = np.moveaxis(np.einsum("ik,k...->i...", weights, np.moveaxis(field, axis, 0)), 0, axis)
    return np.ascontiguousarray((field - field.mean()) / field.std(), dtype=np.float32)


def grain(rng: np.random.Generator, shape: tuple[int, ...], sigma: float | tuple[float, ...]) -> Field:
    """Spatially correlated noise of unit standard deviation; sigma in voxels."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap", truncate=3)
    return np.asarray(noise / noise.std(), dtype=np.float32)


def centreline(points: NDArray[np.float64], num_samples: int = 48) -> NDArray[np.float64]:
    """A spline through points (N, 3), N >= 3, sampled evenly in its parameter: (num_samples, 3)."""
    spline = make_interp_spline(np.linspace(0, 1, len(points)), points, k=min(3, len(points) - 1))
    return np.asarray(spline(np.linspace(0, 1, num_samples)))


@dataclass(eq=False)
class Canvas:
    """Patient coordinates x, y, z of every fine voxel, and the Hounsfield units painted so far; all (X, Y, Z).

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

    @cached_property
    def _extents(self) -> list[tuple[Field, Field]]:
        """The least and the largest coordinate in every plane across each array axis."""
        others = ((1, 2), (0, 2), (0, 1))
        fields = (self.x, self.y, self.z)
        return [(field.min(axis=rest), field.max(axis=rest)) for field, rest in zip(fields, others, strict=True)]

    def coverage(self, distance: Field) -> Field:
        """The part of every voxel inside the shape, 0..1."""
        return np.asarray(np.clip(0.5 - distance / np.float32(self.voxel), 0, 1), dtype=np.float32)

    def paint(self, distance: Field, hu: float, texture_hu: float = 5.0) -> None:
        """Paint an organ of this intensity and a texture of this standard deviation over the canvas."""
        hu_flat, distance_flat = self.hu.reshape(-1), distance.reshape(-1)
        inside = np.flatnonzero(distance_flat < 0.5 * self.voxel)
        texture = self.fine_grain.reshape(-1)[inside] + self.coarse_grain.reshape(-1)[inside]
        painted = hu_flat[inside]
        value = np.float32(hu) + np.float32(0.7 * texture_hu) * texture
        hu_flat[inside] = painted + self.coverage(distance_flat[inside]) * (value - painted)

    def ellipsoid(self, centre: Point, radii: Point, turn: float = 0.0) -> Field:
        """Distance to an ellipsoid, to first order near its surface; turn in radians about z."""
        widest = max(radii[:2])
        middle, reach = np.array(centre), np.array([widest, widest, radii[2]])
        box = self._box(middle - reach, middle + reach)
        cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        dx, dy, dz = (field[box] - np.float32(c) for field, c in zip((self.x, self.y, self.z), centre, strict=True))
        a, b, c = (np.float32(1 / radius) for radius in radii)
        p, q, r = (cos * dx + sin * dy) * a, (cos * dy - sin * dx) * b, dz * c
        level = np.sqrt(p * p + q * q + r * r)
        slope = np.sqrt((p * a) ** 2 + (q * b) ** 2 + (r * c) ** 2)
        return self._everywhere(box, level * (level - 1) / np.maximum(slope, np.float32(1e-6)))

    def cylinder(self, centre: tuple[float, float], radii: tuple[float, float], turn: float = 0.0) -> Field:
        """Distance to an elliptic cylinder along z."""
        return self.ellipsoid((*centre, 0.0), (*radii, 50.0), turn)

    def tube(self, line: NDArray[np.float64], radii: NDArray[np.float64]) -> Field:
        """Distance to a tube along line (N, 3) of radii (N,)."""
        box = self._box(line.min(axis=0) - radii.max(), line.max(axis=0) + radii.max())
        px, py, pz = self.x[box], self.y[box], self.z[box]
        nearest = np.full(px.shape, _FAR, dtype=np.float32)
        for (cx, cy, cz), radius in zip(line.astype(np.float32), radii.astype(np.float32), strict=True):
            np.minimum(nearest, np.sqrt((px - cx) ** 2 + (py - cy) ** 2 + (pz - cz) ** 2) - radius, out=nearest)
        return self._everywhere(box, nearest)

    def _box(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[slice, slice, slice]:
        """The index ranges that hold all voxels whose coordinates lie between low and high, with a margin."""
        ranges = []
        for axis, extents in enumerate(self._extents):
            least, most = extents
            hit = np.flatnonzero((most > low[axis] - _MARGIN) & (least < high[axis] + _MARGIN))
            ranges.append(slice(hit[0], hit[-1] + 1) if len(hit) else slice(0, 0))
        return ranges[0], ranges[1], ranges[2]

    def _everywhere(self, box: tuple[slice, slice, slice], distance: Field) -> Field:
        """A distance field known in a box, far outside of it."""
        field = np.full(self.hu.shape, _FAR, dtype=np.float32)
        field[box] = distance
        return field
