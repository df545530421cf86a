"""Random structures on the grid of a slab: regions that fill space, and organ-like bodies that drift, branch and end.

Coordinates are in half widths of a slice: x and y from -1 to 1, z from the middle of the slab.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.data.anatomy import smooth_field

Labels = NDArray[np.int16]
"""(D, H, W), a number for each structure, from 0."""

_HARMONICS = np.arange(2, 6)


@dataclass(frozen=True)
class Grid:
    """The voxels of a slab.

    Args:
        shape: (D, H, W), with H = W.
        thickness: the distance of two slices in pixels.
    """

    shape: tuple[int, int, int]
    thickness: float

    @property
    def half_height(self) -> float:
        """From the middle of the slab to its end, in half widths of a slice."""
        return self.shape[0] * self.thickness / self.shape[1]

    @property
    def z(self) -> NDArray[np.float64]:
        """(D,): where the slices are."""
        num_slices = self.shape[0]
        return (np.arange(num_slices) - (num_slices - 1) / 2) * self.thickness * 2 / self.shape[1]

    def knots(self, number: int) -> tuple[int, int, int]:
        """Knots for `smooth_field`, `number` of them across a slice, as close along z as in plane."""
        return max(2, round((number - 1) * self.half_height) + 1), number, number


def draw_structures(rng: np.random.Generator, grid: Grid) -> tuple[Labels, int]:
    """Regions, an outline of the body around them in half of the draws, and bodies over both.

    Returns:
        The labels, and how many numbers there are. 0 is the outside of the outline, or empty.
    """
    labels = _regions(rng, grid)
    number = int(labels.max()) + 1
    for _ in range(rng.integers(3, 15)):
        labels, number = _add_body(rng, grid, labels, number)
    if rng.random() < 0.5:
        labels[~_outline(rng, grid)] = 0
    return labels, number


def _regions(rng: np.random.Generator, grid: Grid) -> Labels:
    """Each voxel belongs to the largest of some smooth random fields: numbers from 1."""
    largest = np.full(grid.shape, -np.inf, dtype=np.float32)
    labels = np.ones(grid.shape, dtype=np.int16)
    for number in range(1, int(rng.integers(2, 9))):
        field = smooth_field(rng, grid.shape, grid.knots(int(rng.integers(3, 9)))) + np.float32(rng.normal(0, 0.3))
        above = field > largest
        labels[above] = number
        np.maximum(largest, field, out=largest)
    return labels


def _outline(rng: np.random.Generator, grid: Grid) -> NDArray[np.bool_]:
    """A rounded outline that varies slowly along z: (D, H, W), true inside."""
    path = _wander(rng, grid.z, rng.normal(0, 0.05, 2), 0.05)
    return _star(rng, grid, path, rng.uniform(0.75, 1.05) * np.ones(len(grid.z)), wobble=0.05, stretch=0.3)


def _add_body(rng: np.random.Generator, grid: Grid, labels: Labels, number: int) -> tuple[Labels, int]:
    """Paint one body, with a wall or a core of its own now and then, and its branches."""
    z, h = grid.z, grid.half_height
    size = float(np.exp(rng.uniform(math.log(0.05), math.log(0.5))))
    start = rng.uniform(-0.75, 0.75, 2)
    middle, reach = rng.uniform(-h, h), size * np.exp(rng.uniform(-0.3, 1.6))
    path = _wander(rng, z, start, min(0.8 * reach, 0.5))
    radius = size * _profile(rng, z, middle, reach)
    inside = _star(rng, grid, path, radius)
    labels[inside] = number
    if rng.random() < 0.25:  # a core, such as a lumen or a tumour
        core = _star(rng, grid, path + rng.normal(0, 0.15 * size, 2), rng.uniform(0.3, 0.75) * radius)
        number += 1
        labels[core & inside] = number
    for _ in range(rng.choice(3, p=(0.6, 0.25, 0.15))):
        branch = path + _wander(rng, z, np.zeros(2), 0.8) * np.clip((z - middle) / reach, 0, None)[:, None]
        labels[_star(rng, grid, branch, rng.uniform(0.4, 0.8) * radius)] = number
    return labels, number + 1


def _profile(rng: np.random.Generator, z: NDArray[np.float64], middle: float, reach: float) -> NDArray[np.float64]:
    """The radius along z: 0 beyond `reach`, at most about 1; some bodies end bluntly, some taper."""
    power = rng.choice((2.0, 4.0, 8.0))
    inside = np.clip(1 - np.abs((z - middle) / reach) ** power, 0, None)
    return np.asarray(np.sqrt(inside) * np.exp(0.2 * _noise_along(rng, z, 0.3)))


def _wander(
    rng: np.random.Generator, z: NDArray[np.float64], start: NDArray[np.float64], amount: float
) -> NDArray[np.float64]:
    """A path (D, 2) of x and y along z that drifts about a start."""
    drift = np.stack([_noise_along(rng, z, 0.5) + rng.normal() * z for _ in range(2)], axis=1)
    return np.asarray(start + 0.4 * amount * drift)


def _noise_along(rng: np.random.Generator, z: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """A smooth random function of z of unit variance: some waves no shorter than about `scale`."""
    waves = rng.normal(0, 1 / scale, 4)
    phases = rng.uniform(0, 2 * math.pi, 4)
    return np.asarray(np.cos(waves * z[:, None] + phases).sum(axis=1) / math.sqrt(2))


def _star(
    rng: np.random.Generator,
    grid: Grid,
    path: NDArray[np.float64],
    radius: NDArray[np.float64],
    *,
    wobble: float = 0.15,
    stretch: float = 0.6,
) -> NDArray[np.bool_]:
    """The inside of a tube with a star-shaped section that turns and changes along z: (D, H, W).

    Args:
        path: (D, 2), the centres.
        radius: (D,), 0 where there is nothing.
        wobble: the share by which the section differs from an ellipse.
        stretch: how much longer than wide that ellipse is, as the logarithm of the ratio.
    """
    inside = np.zeros(grid.shape, dtype=bool)
    size = grid.shape[1]
    centres = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
    turns = np.exp(1j * (rng.uniform(0, math.pi) + 0.4 * _noise_along(rng, grid.z, 0.5))).astype(np.complex64)
    longer = np.float32(np.exp(rng.normal(0, stretch) / 2))
    phases = rng.uniform(0, 2 * math.pi, len(_HARMONICS)) + np.stack(
        [0.7 * _noise_along(rng, grid.z, 0.5) for _ in _HARMONICS], axis=1
    )
    heights = wobble * rng.normal(0, 1, len(_HARMONICS)) / np.sqrt(_HARMONICS)
    waves = (heights * np.exp(1j * phases)).astype(np.complex64)  # (D, harmonics)
    reach = radius * max(longer, 1 / longer) * (1 + np.abs(heights).sum())
    for index in np.flatnonzero(radius > 1 / size):
        columns, rows = (np.flatnonzero(np.abs(centres - middle) < reach[index]) for middle in path[index])
        if not (len(columns) and len(rows)):
            continue
        x, y = (centres[held] - np.float32(middle) for held, middle in zip((columns, rows), path[index], strict=True))
        turned = (x + 1j * y[:, None]) * turns[index]
        place = turned.real / longer + 1j * (turned.imag * longer)
        distance = np.abs(place)
        direction = place / np.maximum(distance, 1e-6)
        edge = 1 + (direction**2 * np.polynomial.polynomial.polyval(direction, waves[index])).real
        box = (index, slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        inside[box] = distance < radius[index] * edge
    return inside
