"""Surfaces of masks as meshes in world mm with their distances to each other, packed for the page or rendered."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage import measure

from sam2_3dmed.evaluation.masks import Floats, Mask, bounding_box

_SHRINK = 1.25
# The view is from the front, a little from the patient's left and from above.
_AZIMUTH, _ELEVATION = np.radians(-35), np.radians(20)
_OVERSAMPLING = 2
_MARGIN = 0.06
_AMBIENT = 0.35


@dataclass(frozen=True, eq=False)
class Mesh:
    """A surface.

    Attributes:
        vertices: (n, 3), mm in RAS+ world space.
        triangles: (m, 3) int64, counter-clockwise seen from outside.
        distances_mm: (n,) to the nearest vertex of the other surface; infinite if there is none.
    """

    vertices: Floats
    triangles: NDArray[np.int64]
    distances_mm: Floats


def surface_meshes(first: Mask, second: Mask, affine: Floats, max_triangles: int) -> tuple[Mesh | None, Mesh | None]:
    """The surfaces of two (X, Y, Z) masks on one grid with the distances between them; None for an empty mask.

    Distances are measured before the meshes are simplified to `max_triangles`.
    """
    one, two = _surface(first, affine), _surface(second, affine)
    if one and two:
        vertices = one.vertices, two.vertices
        one, two = (
            replace(mesh, distances_mm=np.asarray(cKDTree(other).query(mesh.vertices)[0]))
            for mesh, other in zip((one, two), reversed(vertices), strict=True)
        )
    return one and simplified(one, max_triangles), two and simplified(two, max_triangles)


def _surface(mask: Mask, affine: Floats) -> Mesh | None:
    """The marching-cubes surface half way between voxels; it is closed where the mask touches the border."""
    marching_cubes: Any = measure.marching_cubes  # it has no types
    box = bounding_box(mask)
    if box[0].stop == 0:
        return None
    padded = np.pad(mask[box], 1).astype(np.float32)
    # Ascent: outside is low, so that triangles are counter-clockwise from there.
    voxels, triangles, _, _ = marching_cubes(padded, 0.5, gradient_direction="ascent")
    if np.linalg.det(affine[:3, :3]) < 0:
        triangles = triangles[:, ::-1]
    voxels = voxels.astype(np.float64) + [side.start - 1 for side in box]
    vertices = voxels @ affine[:3, :3].T + affine[:3, 3]
    return Mesh(vertices, triangles.astype(np.int64), np.full(len(vertices), np.inf))


def simplified(mesh: Mesh, max_triangles: int) -> Mesh:
    """The mesh with at most `max_triangles`: the vertices in a cube of some mm become their mean."""
    edges = mesh.vertices[mesh.triangles[:, 0]] - mesh.vertices[mesh.triangles[:, 1]]
    size_mm, result = float(np.linalg.norm(edges, axis=1).mean()), mesh
    while len(result.triangles) > max_triangles:
        size_mm *= _SHRINK
        cells = np.floor((mesh.vertices - mesh.vertices.min(axis=0)) / size_mm).astype(np.int64)
        _, new, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
        new = new.ravel()
        x, y, z, distances_mm = (np.bincount(new, given) / counts for given in (*mesh.vertices.T, mesh.distances_mm))
        triangles = new[mesh.triangles]
        flat = (triangles == np.roll(triangles, 1, axis=1)).any(axis=1)
        result = Mesh(np.stack([x, y, z], axis=1), triangles[~flat], distances_mm)
    return result


def packed(mesh: Mesh, origin_mm: Floats, limit_mm: float) -> dict[str, Any]:
    """The mesh for the page's script: little-endian numbers in base64.

    Vertices are uint16 steps of `step_mm` from `low_mm`, which is relative to `origin_mm`. Triangles are uint32.
    Distances are uint8, 255 at `limit_mm` and beyond.
    """
    local = mesh.vertices - origin_mm
    low = local.min(axis=0)
    step = max(float((local.max(axis=0) - low).max()) / 65535, 1e-6)
    distances = (np.clip(mesh.distances_mm / limit_mm, 0, 1) * 255).round()
    arrays = {
        "vertices": ((local - low) / step).round().astype("<u2"),
        "triangles": mesh.triangles.astype("<u4"),
        "distances": distances.astype("u1"),
    }
    texts = {name: base64.b64encode(array.tobytes()).decode("ascii") for name, array in arrays.items()}
    return {"low_mm": low.round(4).tolist(), "step_mm": step, **texts}


def view_axes() -> Floats:
    """(3, 3): the directions, in RAS, that point right, up and at the viewer."""
    flat = np.cos(_ELEVATION)
    toward = np.array([np.sin(_AZIMUTH) * flat, np.cos(_AZIMUTH) * flat, np.sin(_ELEVATION)])
    right = np.cross((0, 0, 1), toward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(toward, right), toward])


def bounds(meshes: Sequence[Mesh]) -> tuple[Floats, float]:
    """The centre, in view axes, and the half width in mm of a square picture that holds all meshes."""
    points = np.concatenate([mesh.vertices for mesh in meshes]) @ view_axes().T
    low, high = points.min(axis=0), points.max(axis=0)
    return (low + high) / 2, float((high - low)[:2].max() / 2 * (1 + 2 * _MARGIN)) or 1.0


def render(
    meshes: Sequence[tuple[Mesh, NDArray[np.floating]]], size: int, centre: Floats, half_width_mm: float
) -> NDArray[np.uint8]:
    """Draw meshes in orthographic projection, shaded, the nearest in front, as (size, size, 3) uint8 on white.

    Each mesh has the colours of its vertices, (n, 3) in [0, 1], or one colour (3,). The rest is as in `bounds`.
    """
    axes = view_axes()
    corners, colours = [np.empty((0, 3, 3))], [np.empty((0, 3, 4))]
    for mesh, colour in meshes:
        light = _AMBIENT + (1 - _AMBIENT) * np.abs(_normals(mesh) @ axes[2])
        shaded = np.ones((len(light), 4))
        shaded[:, :3] = colour * light[:, None]
        corners.append((mesh.vertices @ axes.T - centre)[mesh.triangles])
        colours.append(shaded[mesh.triangles])
    points, shades = np.concatenate(corners), np.concatenate(colours)
    # Only triangles that show their outside: the others are behind them, since surfaces are closed.
    shown = np.flatnonzero(np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0])[:, 2] > 0)
    shown = shown[np.argsort(points[shown, :, 2].mean(axis=1), kind="stable")]  # the nearest is drawn last
    wide = size * _OVERSAMPLING
    canvas = RendererAgg(wide, wide, 72)
    to_pixels = Affine2D().translate(half_width_mm, half_width_mm).scale(wide / (2 * half_width_mm))
    canvas.draw_gouraud_triangles(canvas.new_gc(), points[shown, :, :2], shades[shown], to_pixels)
    pixels = np.asarray(canvas.buffer_rgba())
    on_white = np.where(pixels[..., 3:] > 128, pixels[..., :3], 255)  # not what is covered by half or less
    picture: Floats = on_white.reshape(size, _OVERSAMPLING, size, _OVERSAMPLING, 3).mean(axis=(1, 3))
    return picture.round().astype(np.uint8)


def _normals(mesh: Mesh) -> Floats:
    """(n, 3) mean directions of the triangles at each vertex, by area."""
    corners = mesh.vertices[mesh.triangles]
    faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(mesh.vertices)
    np.add.at(normals, mesh.triangles.ravel(), np.repeat(faces, 3, axis=0))
    unit: Floats = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return unit
