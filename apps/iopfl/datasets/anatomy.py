"""A male pelvis as an ideal T2-weighted scanner would see it.

Tissues are painted one over the other as soft-edged ellipsoids on a slowly
warped grid, so that no outline is a perfect ellipse. Everything a hospital
adds (contrast, coil, noise, voxel size) is left to `phantom.py`.

Frame: RAS, mm, origin at the middle of the prostate gland: x to the left hand
side of the image is the patient's right, y is anterior, z is superior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

GRID_SHAPE = (160, 160, 20)
"""Voxels of the grid the anatomy is painted on."""

GRID_SPACING = (1.25, 1.25, 3.0)
"""mm; hence a field of 200 x 200 x 60 mm around the gland."""

_EDGE = 1.2
"""mm over which one tissue fades into the next (partial volume)."""

_WARP = 2.5
"""mm, largest displacement of the warp along each axis in-plane."""

_Vector = Sequence[float] | np.ndarray
_Shape = tuple[tuple[slice, ...], np.ndarray]

_TISSUES = {
    "fat": 0.64,
    "muscle": 0.20,
    "cortical_bone": 0.06,
    "marrow": 0.52,
    "urine": 0.95,
    "bladder_wall": 0.25,
    "seminal_vesicle": 0.80,
    "peripheral_zone": 0.78,
    "central_gland": 0.42,
    "stroma": 0.20,
    "capsule": 0.22,
    "lesion": 0.36,
    "vein": 0.88,
    "rectal_wall": 0.30,
    "gas": 0.03,
    "feces": 0.14,
    "coil_edge": 0.70,
}
"""T2-weighted signal, 0 (none) to 1 (fluid)."""


@dataclass(frozen=True)
class Pelvis:
    """One patient before any scanner.

    Attributes:
        t2: signal, (X, Y, Z) float32, 0 to 1.
        gland: the prostate, (X, Y, Z) uint8, 0 or 1.
        rectum: middle of the rectum in mm (RAS), where a coil would lie.
        affine: voxel to RAS mm, (4, 4).
    """

    t2: np.ndarray
    gland: np.ndarray
    rectum: tuple[float, float, float]
    affine: np.ndarray


class _Canvas:
    """A grid that tissues are painted on, with the warp of one patient."""

    def __init__(self, rng: np.random.Generator) -> None:
        axes = [
            (np.arange(n, dtype=np.float32) - (n - 1) / 2) * d for n, d in zip(GRID_SHAPE, GRID_SPACING, strict=True)
        ]
        self._axes = axes
        x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
        phase = rng.uniform(0, 2 * np.pi, size=6).astype(np.float32)
        length = rng.uniform(45, 80, size=4).astype(np.float32)
        # Sums of two waves along the other axes: smooth, never folding.
        bend = _WARP / 2
        self._x = x + bend * (np.sin(2 * np.pi * y / length[0] + phase[0]) + np.sin(2 * np.pi * z / 70 + phase[1]))
        self._y = y + bend * (np.sin(2 * np.pi * x / length[1] + phase[2]) + np.sin(2 * np.pi * z / 70 + phase[3]))
        self._z = np.broadcast_to(z, GRID_SHAPE)
        self._x, self._y = (np.broadcast_to(a, GRID_SHAPE) for a in (self._x, self._y))
        self.t2 = np.zeros(GRID_SHAPE, dtype=np.float32)

    def _window(self, center: _Vector, reach: _Vector) -> tuple[slice, ...]:
        """Voxels that an ellipsoid can touch, so that small ones cost little."""
        margin = _WARP + _EDGE
        return tuple(
            slice(
                int(np.searchsorted(axis, c - r - margin)),
                int(np.searchsorted(axis, c + r + margin)),
            )
            for axis, c, r in zip(self._axes, center, reach, strict=True)
        )

    def ellipsoid(self, center: _Vector, radii: _Vector, *, angle: float = 0.0, hollow: float = 0.0) -> _Shape:
        """Coverage of an ellipsoid.

        Args:
            center: mm, RAS.
            radii: mm along x, y, z before the rotation.
            angle: rotation in-plane, degrees, counter-clockwise.
            hollow: how far the posterior surface is dented, in radii; the
                rectum does this to the gland.

        Returns:
            The window it lies in, and its coverage there, 0 to 1.
        """
        cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        reach = (
            np.hypot(radii[0] * cos, radii[1] * sin),
            np.hypot(radii[0] * sin, radii[1] * cos),
            radii[2],
        )
        window = self._window(center, reach)
        dx, dy, dz = (
            self._x[window] - center[0],
            self._y[window] - center[1],
            self._z[window] - center[2],
        )
        u = (dx * cos + dy * sin) / radii[0]
        v = (dy * cos - dx * sin) / radii[1]
        if hollow:
            v = v - hollow * np.exp(-((u / 0.6) ** 2)) * (v < 0)
        depth = (1 - np.sqrt(u * u + v * v + (dz / radii[2]) ** 2)) * min(radii[0], radii[1])
        return window, np.clip(depth / _EDGE + 0.5, 0, 1, dtype=np.float32)

    def paint(self, shape: _Shape, value: float) -> None:
        """Paint a shape from `ellipsoid` over what is there."""
        window, coverage = shape
        self.t2[window] += coverage * (np.float32(value) - self.t2[window])


def draw_pelvis(rng: np.random.Generator, *, fat_signal: float = 1.0, endorectal_coil: bool = False) -> Pelvis:
    """Draw one patient; every draw from `rng` is another one.

    Args:
        rng: the only source of variation.
        fat_signal: factor on the signal of fat and marrow; below 1 as with
            fat suppression.
        endorectal_coil: distend the rectum by the balloon of a coil.

    Returns:
        The patient on a grid of `GRID_SHAPE` voxels of `GRID_SPACING` mm.
    """
    tissue = {name: value * rng.normal(1, 0.05) for name, value in _TISSUES.items()}
    for name in ("fat", "marrow"):
        tissue[name] *= fat_signal
    canvas = _Canvas(rng)
    gland = np.array([rng.uniform(20, 29), rng.uniform(15, 22), rng.uniform(13, 17.5)])
    balloon = rng.uniform(17, 20) if endorectal_coil else rng.uniform(9, 15)
    rectum = (rng.uniform(-3, 3), -gland[1] * 0.92 - balloon - 1.5, 0.0)

    _paint_frame(canvas, tissue, rng)
    _paint_bowl(canvas, tissue, rng, gland, rectum, balloon)
    _paint_rectum(canvas, tissue, rng, rectum, balloon, endorectal_coil)
    mask = _paint_gland(canvas, tissue, rng, gland)

    for sigma, depth in ((0.8, 0.06), (4.0, 0.05)):  # fine grain, slow mottling
        grain = ndimage.gaussian_filter(rng.standard_normal(GRID_SHAPE, dtype=np.float32), sigma=(sigma, sigma, 0.4))
        canvas.t2 *= 1 + depth * grain / grain.std()
    affine = np.diag([*GRID_SPACING, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * d for n, d in zip(GRID_SHAPE, GRID_SPACING, strict=True)]
    return Pelvis(np.clip(canvas.t2, 0, 1), mask, rectum, affine)


def _paint_frame(canvas: _Canvas, tissue: dict[str, float], rng: np.random.Generator) -> None:
    """Paint body outline, subcutaneous fat, wall muscles, bones and vessels."""
    skin = np.array([rng.uniform(150, 175), rng.uniform(84, 104)])
    belly = rng.uniform(10, 24)
    body = (0, -4, 0)
    canvas.paint(canvas.ellipsoid(body, (*skin, 400)), tissue["muscle"])
    canvas.paint(canvas.ellipsoid(body, (*(skin - 2), 400)), tissue["fat"])
    canvas.paint(canvas.ellipsoid(body, (skin[0] - belly, skin[1] - belly, 400)), tissue["muscle"])
    turn = rng.uniform(-4, 4)
    size = rng.uniform(0.92, 1.08)
    for side in (-1, 1):
        # Fat planes between the wall muscles.
        for x, y, length, width, angle in (
            (44, 44, 38, 2.2, -38),
            (66, 30, 34, 1.8, -52),
            (62, -58, 40, 2.4, 24),
            (70, 62, 30, 2.0, -12),
        ):
            plane = canvas.ellipsoid((side * x, y, 0), (length, width, 200), angle=side * angle + turn)
            canvas.paint(plane, tissue["fat"])
        head = 22 * size
        for center, radii, tilt in (
            ((side * 84 * size, 2, 4), (head, head, 34), 0),
            ((side * 55 * size, -22, -2), (10, 19, 60), side * 14),
            ((side * 21, 50, -4), (25, 8.5, 30), side * -24),
        ):
            rim = np.array([1.8, 1.8, 0])
            canvas.paint(canvas.ellipsoid(center, radii, angle=tilt + turn), tissue["cortical_bone"])
            canvas.paint(canvas.ellipsoid(center, radii - rim, angle=tilt + turn), tissue["marrow"])
        for place, radius, name in (((58, 68), 5.0, "vein"), ((70, 70), 4.0, "cortical_bone")):
            vessel = (side * (place[0] + rng.normal(0, 2)), place[1] + rng.normal(0, 2), 0)
            canvas.paint(canvas.ellipsoid(vessel, (radius, radius, 200)), tissue[name])
    canvas.paint(canvas.ellipsoid((0, 50, -4), (2.2, 11, 30)), tissue["cortical_bone"])


def _paint_bowl(
    canvas: _Canvas,
    tissue: dict[str, float],
    rng: np.random.Generator,
    gland: np.ndarray,
    rectum: _Vector,
    balloon: float,
) -> None:
    """Paint the pelvic floor with its fat, obturator muscles, bladder, vesicles."""
    wide = max(gland[0], balloon)
    canvas.paint(canvas.ellipsoid((0, -6, 0), (wide + 13, 48, 200)), tissue["fat"])
    for side in (-1, 1):
        canvas.paint(canvas.ellipsoid((side * 27, -52, -6), (19, 30, 70), angle=side * 24), tissue["fat"])
        canvas.paint(
            canvas.ellipsoid((side * (wide + 14), 4, 0), (8, 38, 90), angle=side * 10),
            tissue["muscle"] * 1.15,
        )
    canvas.paint(canvas.ellipsoid((0, -96, 0), (4, 30, 200)), tissue["fat"])
    # The levator sling: a dark line around gland and rectum together.
    sling = (rectum[0] / 2, (rectum[1] - 2) / 2, -4)
    radii = np.array([wide + 5.5, (abs(rectum[1]) + balloon + gland[1]) / 2 + 6, 60])
    canvas.paint(canvas.ellipsoid(sling, radii), tissue["muscle"])
    canvas.paint(canvas.ellipsoid(sling, radii - [3.2, 3.2, 0]), tissue["fat"])
    top = gland[2]
    bladder = np.array([rng.uniform(22, 32), rng.uniform(15, 22), rng.uniform(11, 16)])
    at = (rng.normal(0, 2), 10, top + bladder[2] * 0.8)
    canvas.paint(canvas.ellipsoid(at, bladder + 2.6), tissue["bladder_wall"])
    canvas.paint(canvas.ellipsoid(at, bladder), tissue["urine"])
    for side in (-1, 1):
        canvas.paint(
            canvas.ellipsoid((side * 15, -13, top + 5), (15, 5.5, 6), angle=side * 14),
            tissue["seminal_vesicle"],
        )
    # Veins in the fat beside and in front of the gland: bright, near its edge.
    for _ in range(14):
        angle = rng.uniform(-0.4, np.pi + 0.4)
        out = rng.uniform(1.06, 1.2)
        at = (gland[0] * out * np.cos(angle), gland[1] * out * np.sin(angle), rng.uniform(-14, 12))
        canvas.paint(canvas.ellipsoid(at, (rng.uniform(1.5, 3), rng.uniform(1.5, 2.6), 7)), tissue["vein"])


def _paint_rectum(
    canvas: _Canvas,
    tissue: dict[str, float],
    rng: np.random.Generator,
    rectum: _Vector,
    balloon: float,
    endorectal_coil: bool,
) -> None:
    """Paint the rectum: gas or feces, or the balloon of an endorectal coil."""
    radii = np.array([balloon * rng.uniform(0.95, 1.1), balloon, 90])
    canvas.paint(canvas.ellipsoid(rectum, radii), tissue["rectal_wall"])
    if endorectal_coil:
        canvas.paint(canvas.ellipsoid(rectum, radii - [1.8, 1.8, 0]), tissue["coil_edge"])
        canvas.paint(canvas.ellipsoid(rectum, radii - [3.0, 3.0, 0]), tissue["gas"])
        shaft = (rectum[0], rectum[1] + balloon * 0.3, 0)
        canvas.paint(canvas.ellipsoid(shaft, (3.5, 2.5, 90)), tissue["rectal_wall"])
        return
    content = "gas" if rng.random() < 0.6 else "feces"
    shift = rng.normal(0, 1, size=2)
    canvas.paint(
        canvas.ellipsoid((rectum[0] + shift[0], rectum[1] + shift[1], 0), radii * [0.66, 0.62, 1]),
        tissue[content],
    )


def _paint_gland(canvas: _Canvas, tissue: dict[str, float], rng: np.random.Generator, radii: np.ndarray) -> np.ndarray:
    """Paint the prostate, zone by zone, and return its mask (X, Y, Z) uint8."""
    outline = canvas.ellipsoid((0, 0, 0), radii, hollow=0.10)
    canvas.paint(outline, tissue["capsule"])
    inner = canvas.ellipsoid((0, 0, 0), radii - [1.3, 1.3, 0.6], hollow=0.10)
    canvas.paint(inner, tissue["peripheral_zone"])
    bulk = rng.uniform(0.60, 0.80)
    central = radii * [bulk, bulk * 0.96, 0.9]
    center = np.array([rng.normal(0, 0.6), radii[1] * (0.92 - bulk), 1.0])
    canvas.paint(canvas.ellipsoid(center, central + np.array([0.9, 0.9, 0])), tissue["capsule"])
    canvas.paint(canvas.ellipsoid(center, central), tissue["central_gland"])
    for _ in range(rng.integers(4, 11)):  # nodules of benign hyperplasia
        at = center + central * rng.uniform(-0.6, 0.6, size=3)
        size = rng.uniform(2, 5.5)
        canvas.paint(canvas.ellipsoid(at, (size, size * 0.9, size)), rng.uniform(0.22, 0.75))
    canvas.paint(
        canvas.ellipsoid((0, radii[1] * 0.84, 0), (radii[0] * 0.36, 2.6, radii[2] * 0.7)),
        tissue["stroma"],
    )
    canvas.paint(canvas.ellipsoid((0, -radii[1] * 0.1, 0), (1.8, 2.2, 9)), tissue["vein"])
    if rng.random() < 0.4:
        side = rng.choice([-1, 1])
        lesion = (side * radii[0] * 0.55, -radii[1] * 0.58, rng.uniform(-5, 5))
        canvas.paint(canvas.ellipsoid(lesion, (4.5, 3.0, 5)), tissue["lesion"])
    mask = np.zeros(GRID_SHAPE, dtype=np.uint8)
    mask[outline[0]] = outline[1] >= 0.5
    return mask
