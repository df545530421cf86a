"""Surfaces of masks as meshes in world mm, each vertex with its distance to the other surface."""

import base64
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_SHRINK = 1.25


@dataclass(frozen=True, eq=False)
class Mesh:
    """A surface.

    vertices: (n, 3) float64, mm in RAS+ world space. triangles: (m, 3) int64, counter-clockwise seen from outside.
    distances_mm: (n,) float64 to the nearest vertex of the other surface; infinite if there is none.
    """

    vertices: Floats
    triangles: NDArray[np.int64]
    distances_mm: Floats


def surface_meshes(
    first: NDArray[np.bool_], second: NDArray[np.bool_], affine: NDArray[np.float64], max_triangles: int
) -> tuple[Mesh | None, Mesh | None]:
    """The surfaces of two (X, Y, Z) masks on one grid, with the distances between them; None for an empty one.

    Distances are measured before the meshes are brought below `max_triangles`.
    """
    surfaces = [_surface(mask, affine) for mask in (first, second)]
    meshes: list[Mesh | None] = []
    for surface, other in (surfaces, surfaces[::-1]):
        if surface is not None:
            measured = replace(surface, distances_mm=_distances_mm(surface.vertices, other))
            meshes.append(simplified(measured, max_triangles))
        else:
            meshes.append(None)
    return meshes[0], meshes[1]


def _surface(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> Mesh | None:
    """The marching-cubes surface half way between voxels; closed where the mask touches the border."""
    from skimage import measure

    marching_cubes: Any = measure.marching_cubes  # it has no types
    corners = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not corners[0].size:
        return None
    box = tuple(slice(found[0], found[-1] + 1) for found in corners)
    padded = np.pad(mask[box], 1).astype(np.float32)
    # Ascent: outside is low, so that triangles are counter-clockwise from there.
    voxels, triangles, _, _ = marching_cubes(padded, 0.5, gradient_direction="ascent")
    voxels = voxels.astype(np.float64) + [found[0] - 1 for found in corners]
    if np.linalg.det(affine[:3, :3]) < 0:
        triangles = triangles[:, ::-1]
    vertices = voxels @ affine[:3, :3].T + affine[:3, 3]
    return Mesh(vertices, triangles.astype(np.int64), np.zeros(len(vertices)))


def _distances_mm(vertices: Floats, other: Mesh | None) -> Floats:
    from scipy.spatial import cKDTree

    if other is None:
        return np.full(len(vertices), np.inf)
    return np.asarray(cKDTree(other.vertices).query(vertices)[0])


def simplified(mesh: Mesh, max_triangles: int) -> Mesh:
    """The mesh with at most `max_triangles`: vertices that share a cube of some mm become their mean."""
    edge_mm = np.linalg.norm(mesh.vertices[mesh.triangles[:, 0]] - mesh.vertices[mesh.triangles[:, 1]], axis=1).mean()
    size_mm, result = float(edge_mm), mesh
    while len(result.triangles) > max_triangles:
        size_mm *= _SHRINK
        result = _merged(mesh, size_mm)
    return result


def _merged(mesh: Mesh, size_mm: float) -> Mesh:
    cells = np.floor((mesh.vertices - mesh.vertices.min(axis=0)) / size_mm).astype(np.int64)
    _, new, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    new = new.ravel()
    columns = [np.bincount(new, values) / counts for values in (*mesh.vertices.T, mesh.distances_mm)]
    triangles = new[mesh.triangles]
    flat = (triangles == np.roll(triangles, 1, axis=1)).any(axis=1)
    return Mesh(np.stack(columns[:3], axis=1), triangles[~flat], columns[3])


def packed(mesh: Mesh, origin_mm: Floats, limit_mm: float) -> dict[str, Any]:
    """The mesh as the page's script unpacks it, all numbers little-endian and in base64.

    vertices: uint16 steps of `step_mm` from `low_mm`, which is relative to `origin_mm`; triangles: uint32;
    distances: uint8, 255 at `limit_mm` and beyond.
    """
    local = mesh.vertices - origin_mm
    low = local.min(axis=0)
    step = max(float((local.max(axis=0) - low).max()) / 65535, 1e-6)
    steps = ((local - low) / step).round().astype("<u2")
    distances = (np.clip(mesh.distances_mm / limit_mm, 0, 1) * 255).round().astype("u1")
    return {
        "low_mm": low.round(4).tolist(),
        "step_mm": step,
        "vertices": _text(steps),
        "triangles": _text(mesh.triangles.astype("<u4")),
        "distances": _text(distances),
    }


def _text(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
