"""The drawing of a phantom: soft-edged shapes and textures on a fine grid, and the organs made of them.

Coordinates are the patient's, RAS (+x to the right, +y to the front, +z to the head); their unit is half the width of
the field of view. Positions along the body are mostly in half heights (h) of the volume. A shape is a signed distance
field: negative inside, in the same unit. Organs are painted from the outside in; sizes and places vary with every draw.
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

FAT, MUSCLE = -100.0, 52.0
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


def paint_trunk(canvas: Canvas, rng: np.random.Generator) -> Field:
    """Table, skin, fat rim, muscle wall, ribs, visceral fat. Returns the distance field of the cavity inside."""
    width, depth = rng.uniform(0.80, 0.90), rng.uniform(0.60, 0.70)
    table_y = -depth - 0.04 + 0.12 * canvas.x**2
    canvas.paint(np.abs(canvas.y - table_y) - 0.012, -350.0)
    body = canvas.cylinder((0.0, 0.0), (width, depth))
    canvas.paint(body, 20.0)  # the skin
    canvas.paint(body + 0.02, FAT, 6.0)
    wall: Field = body + (rng.uniform(0.05, 0.11) + 0.02 * np.cos(3 * np.arctan2(canvas.y, canvas.x)))
    canvas.paint(wall, MUSCLE, 8.0)
    # Ribs slope down to the front, so that an axial slice cuts each of them once.
    period = rng.uniform(0.24, 0.30)
    height = canvas.z + 0.5 * canvas.y + rng.uniform(0, period)
    rib = np.maximum(np.abs(wall + 0.035) - 0.022, np.abs(np.mod(height, period) - period / 2) - 0.05)
    margin = (0.35 * canvas.y - 0.45 * canvas.half_height) - canvas.z
    rib = np.maximum(np.maximum(rib, margin), 0.12 - np.abs(canvas.x))
    canvas.paint(rib, rng.uniform(350, 500), 40.0)
    cavity: Field = wall + rng.uniform(0.06, 0.08)
    canvas.paint(cavity, FAT + 5, 10.0)
    return cavity


def paint_spine(canvas: Canvas, rng: np.random.Generator) -> None:
    """Psoas and back muscles, vertebrae with cortex, discs, canal and processes, aorta and vena cava."""
    h = canvas.half_height
    muscle = MUSCLE + rng.normal(0, 4)
    size = rng.uniform(0.92, 1.08)
    for side in (-1, 1):
        canvas.paint(canvas.cylinder((side * 0.15, -0.47), (0.19, 0.10), -0.15 * side), muscle, 10.0)
        canvas.paint(canvas.ellipsoid((side * 0.20, -0.29, -1.1 * h), (0.085, 0.10, 1.1 * h)), muscle + 5, 7.0)
    lateral = canvas.ellipsoid((0.0, -0.455, 0.0), (0.21 * size, 0.028, 50.0))
    spinous = canvas.ellipsoid((0.0, -0.52, 0.0), (0.022, 0.085, 50.0))
    level = np.mod(canvas.z + rng.uniform(0, 1), rng.uniform(0.26, 0.31))
    disc = np.abs(level - 0.14) - 0.035
    bone = rng.uniform(250, 380)
    canvas.paint(np.maximum(np.minimum(lateral, spinous), 0.02 - disc), bone + 150, 60.0)
    vertebra = canvas.cylinder((0.0, -0.32), (0.135 * size, 0.105 * size))
    canvas.paint(vertebra, bone + 320, 40.0)
    canvas.paint(vertebra + 0.022, bone, 45.0)
    canvas.paint(np.maximum(vertebra, disc), 85.0, 8.0)
    canvas.paint(canvas.cylinder((0.0, -0.445), (0.075, 0.06)), bone + 300, 40.0)
    canvas.paint(canvas.cylinder((0.0, -0.445), (0.052, 0.042)), 30.0, 5.0)
    blood = rng.uniform(230, 300)  # arteries come first
    canvas.paint(canvas.cylinder((-0.06 + rng.normal(0, 0.01), -0.165), (0.052, 0.052)), blood + 10, 4.0)
    vena_cava = canvas.cylinder((0.115 + rng.normal(0, 0.01), -0.17), (0.07, 0.048), rng.normal(0, 0.3))
    canvas.paint(vena_cava, blood - 130, 5.0)


def paint_upper_organs(canvas: Canvas, rng: np.random.Generator, cavity: Field) -> None:
    """Liver, spleen, stomach, kidneys; lungs and heart above the two domes of the diaphragm."""
    right, left = (np.float32(rng.uniform(*limits) * canvas.half_height) for limits in ((0.80, 0.95), (0.70, 0.85)))
    from_peak = (np.abs(canvas.x) - 0.36) ** 2 + 0.8 * canvas.y**2
    dome = np.where(canvas.x > 0, right, left) - 0.9 * from_peak
    below = np.maximum(cavity, 0.9 * (canvas.z - dome)) + 0.02
    _paint_liver(canvas, rng, below)
    _paint_spleen(canvas, rng, below)
    _paint_stomach(canvas, rng, below)
    _paint_kidneys(canvas, rng)
    _paint_chest(canvas, rng, np.maximum(cavity, dome - canvas.z))


def _paint_liver(canvas: Canvas, rng: np.random.Generator, below: Field) -> None:
    """Two lobes under the right dome, brighter veins in them, and the gall bladder."""
    h = canvas.half_height
    middle = (0.42 + rng.normal(0, 0.02), 0.03 + rng.normal(0, 0.03), 0.28 * h)
    right = canvas.ellipsoid(middle, (0.40, 0.46, rng.uniform(0.8, 1.0) * h))
    middle = (0.05, 0.34 + rng.normal(0, 0.02), 0.5 * h)
    left = canvas.ellipsoid(middle, (0.38, 0.17, rng.uniform(0.4, 0.55) * h), -0.2)
    liver = np.maximum(np.minimum(right, left) + 0.02 * canvas.coarse_grain, below)
    liver_hu = rng.uniform(62, 84)
    canvas.paint(liver, liver_hu, 6.0)
    for _ in range(5):
        vein = _branch(canvas, rng, [[0.14, 0.0, 0.5 * h], [0.4, 0.0, 0.4 * h], [0.62, 0.0, 0.3 * h]], 0.13)
        canvas.paint(np.maximum(vein, liver + 0.02), liver_hu + rng.uniform(15, 35), 3.0)
    place = (0.34 + rng.normal(0, 0.03), 0.28, -0.25 * h)
    canvas.paint(canvas.ellipsoid(place, (0.08, 0.11, 0.25 * h), rng.normal(0, 0.4)), 12.0, 3.0)


def _paint_spleen(canvas: Canvas, rng: np.random.Generator, below: Field) -> None:
    """A crescent at the left of the back, hollow toward its hilum."""
    h = canvas.half_height
    place = (-0.56 + rng.normal(0, 0.02), -0.20, (0.25 + rng.normal(0, 0.05)) * h)
    spleen = canvas.ellipsoid(place, (0.17, 0.27, 0.55 * h), 0.3) + 0.01 * canvas.coarse_grain
    hilum = canvas.ellipsoid((-0.36, -0.10, 0.25 * h), (0.12, 0.12, 0.4 * h))
    canvas.paint(np.maximum(np.maximum(spleen, -hilum), below), rng.uniform(100, 135), 5.0)


def _paint_stomach(canvas: Canvas, rng: np.random.Generator, below: Field) -> None:
    """Stomach: wall, fluid, and gas above a level that is flat in a patient lying on the back."""
    h = canvas.half_height
    centre = (-0.34 + rng.normal(0, 0.03), 0.26 + rng.normal(0, 0.02), (0.35 + rng.normal(0, 0.05)) * h)
    stomach = np.maximum(canvas.ellipsoid(centre, (0.23, 0.18, 0.45 * h), rng.normal(0.4, 0.2)), below)
    canvas.paint(stomach, rng.uniform(60, 85), 6.0)
    canvas.paint(stomach + 0.03, rng.uniform(15, 65), 12.0)
    level = centre[1] + rng.uniform(0.0, 0.10)
    canvas.paint(np.maximum(stomach + 0.03, level - canvas.y), -920.0, 20.0)


def _paint_kidneys(canvas: Canvas, rng: np.random.Generator) -> None:
    """Bright cortex, darker medulla and fat in the sinus; the right one lies lower."""
    h = canvas.half_height
    for side in (-1, 1):
        x, y = side * (0.42 + rng.normal(0, 0.015)), -0.27 + rng.normal(0, 0.015)
        z = (-0.25 - 0.1 * side + rng.normal(0, 0.05)) * h
        kidney = canvas.ellipsoid((x, y, z), (0.115, 0.135, rng.uniform(0.40, 0.50) * h), side * 0.5)
        canvas.paint(kidney, rng.uniform(170, 210), 8.0)
        canvas.paint(kidney + 0.045, rng.uniform(75, 110), 12.0)
        sinus = canvas.ellipsoid((x - side * 0.05, y + 0.03, z), (0.07, 0.035, 0.2 * h), -side * 0.5)
        canvas.paint(sinus, FAT + 40, 20.0)


def _paint_chest(canvas: Canvas, rng: np.random.Generator, lungs: Field) -> None:
    """Lungs with vessels, fat of the mediastinum, heart."""
    h = canvas.half_height
    canvas.paint(lungs, -830.0, 30.0)
    for _ in range(8):
        s = float(rng.choice((-1.0, 1.0)))
        vessel = _branch(
            canvas, rng, [[0.1 * s, 0.0, 1.1 * h], [0.4 * s, 0.0, 0.9 * h], [0.65 * s, 0.0, 0.6 * h]], 0.12
        )
        canvas.paint(np.maximum(vessel, lungs), 30.0)
    back, front = canvas.cylinder((-0.02, -0.15), (0.17, 0.20)), canvas.cylinder((-0.05, 0.30), (0.12, 0.35))
    mediastinum = np.minimum(back, front) + 0.02 * canvas.coarse_grain
    canvas.paint(np.maximum(mediastinum, lungs), FAT + 20, 15.0)
    heart = canvas.ellipsoid((-0.08, 0.15 + rng.normal(0, 0.03), 1.15 * h), (0.30, 0.26, 0.55 * h), 0.4)
    canvas.paint(heart, rng.uniform(190, 250), 8.0)


def _branch(canvas: Canvas, rng: np.random.Generator, points: list[list[float]], spread: float) -> Field:
    """A vessel that tapers along three points, each moved at random."""
    line = centreline(np.array(points) + rng.normal(0, spread, (3, 3)), 14)
    return canvas.tube(line, np.linspace(0.035, 0.012, 14))


def paint_bowel(canvas: Canvas, rng: np.random.Generator, cavity: Field) -> None:
    """Loops, mostly in front: with fluid, contrast, gas or nothing; some as bright as the targets."""
    for _ in range(int(rng.integers(14, 20))):
        start = np.array(
            [0.6 * rng.uniform(-1, 1), rng.uniform(0.12, 0.42), rng.uniform(-1.1, -0.2) * canvas.half_height]
        )
        steps = rng.normal(0, 1, (3, 3)) * (0.16, 0.08, 0.12)
        line = centreline(np.concatenate([start[None], start + np.cumsum(steps, axis=0)]), 14)
        loop = np.maximum(canvas.tube(line, rng.uniform(0.05, 0.09)), cavity + 0.02)
        canvas.paint(loop, rng.uniform(60, 105), 9.0)
        if rng.random() < 0.7:
            contents = [rng.uniform(15, 60), rng.uniform(35, 90), rng.uniform(180, 260)]
            canvas.paint(loop + 0.025, float(rng.choice(contents, p=[0.5, 0.35, 0.15])), 10.0)
        if rng.random() < 0.25:
            canvas.paint(np.maximum(loop + 0.025, float(np.median(line[:, 1])) - canvas.y), -850.0, 20.0)


def paint_pancreas(canvas: Canvas, rng: np.random.Generator) -> tuple[Field, Field]:
    """The pancreas along a random spline from duodenum to spleen, and a tumour in it.

    Returns:
        The distance fields of the pancreas with its tumour (which may bulge), and of the tumour.
    """
    x, y = (0.27, 0.17, -0.02, -0.22, -0.42), (0.01, 0.10, 0.13, 0.06, -0.03)
    course = np.column_stack([x, y, np.multiply((-0.42, -0.2, 0.0, 0.1, 0.2), canvas.half_height)])
    line = centreline(course + rng.normal(0, 1, course.shape) * (0.03, 0.03, 0.06) + rng.normal(0, 0.03, 3))
    at = np.linspace(0, 1, len(line))
    radii = rng.uniform(0.115, 0.135) * (1.10 - 0.22 * at + 0.08 * np.sin(rng.uniform(0, 6) + 9 * at))
    pancreas = canvas.tube(line, radii) + 0.008 * canvas.fine_grain
    place = line[int(rng.uniform(0.08, 0.92) * (len(line) - 1))] + rng.normal(0, 0.015, 3)
    shape = rng.uniform(0.135, 0.170) * rng.uniform(0.9, 1.12, 3)
    tumour = canvas.ellipsoid(place.tolist(), shape.tolist(), rng.uniform(0, 3)) + 0.008 * canvas.coarse_grain
    both = np.minimum(pancreas, tumour)
    canvas.paint(both - 0.04, FAT + 5, 10.0)
    vein = line - np.array([0, 1, 0]) * (radii[:, None] + 0.035)
    canvas.paint(canvas.tube(vein, 0.028), rng.uniform(125, 165), 4.0)
    pancreas_hu = rng.uniform(106, 126)
    canvas.paint(pancreas, pancreas_hu, 8.0)
    tumour_hu = pancreas_hu + rng.uniform(55, 75)
    canvas.paint(tumour, tumour_hu - 15, 6.0)
    canvas.paint(tumour + 0.02, tumour_hu, 6.0)
    if rng.random() < 0.3:
        canvas.paint(tumour + rng.uniform(0.05, 0.08), tumour_hu - 18, 4.0)  # necrosis
    return both, tumour
