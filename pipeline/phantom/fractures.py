"""Sample fractures: lucent sheets through a vertebra, some with a displaced fragment.

A sheet is a slightly wavy, vertical or oblique plane, 0.5 to 2 mm wide, limited in height so that
it is visible in about a third of the vertebra's slices. Bone inside the sheet is replaced by
haematoma, and the fragment behind it may be shifted. The sites are those of common patterns: burst
ring of C1, dens and pars of C2, bodies, pedicles, pillars, laminae, transverse and spinous
processes of C3 to C7.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.phantom.shapes import Field, Point, Points
from pipeline.phantom.vertebrae import FORMS

HAEMATOMA_HU = 45.0


@dataclass(frozen=True)
class Fracture:
    """One sheet, in the coordinate frame of its vertebra.

    Parameters
    ----------
    site : str
        Name of the anatomical site.
    centre : (float, float, float)
        Point of the sheet, (u, v, w) in mm.
    normal : (float, float, float)
        Unit normal of the sheet.
    half_length, half_height : float
        Half of the length and of the height of the sheet in mm.
    width : float
        Thickness of the sheet in mm, in patient coordinates.
    wave : (float, float, float)
        Amplitude in mm, angular frequency in radians per mm, and phase of the waves.
    step : float
        Displacement of the fragment along the sheet in mm.
    """

    site: str
    centre: Point
    normal: Point
    half_length: float
    half_height: float
    width: float
    wave: tuple[float, float, float]
    step: float

    def across_and_weight(self, points: Points) -> tuple[Field, Field]:
        """Compute the signed distance from the sheet, and the weight of the sheet.

        Parameters
        ----------
        points : tuple of ndarray
            Points (u, v, w) in the frame of the vertebra, in mm.

        Returns
        -------
        across : ndarray, float32
            Signed distance from the sheet in mm.
        weight : ndarray, float32
            1 within the length and the height of the sheet, falling to 0 outside.
        """
        away = [p - np.float32(c) for p, c in zip(points, self.centre, strict=True)]
        along = self._along
        across = sum(a * np.float32(n) for a, n in zip(away, self.normal, strict=True))
        length = sum(a * np.float32(t) for a, t in zip(away, along, strict=True))
        amplitude, frequency, phase = self.wave
        wavy = across + amplitude * np.sin(frequency * (length + 0.5 * away[2]) + phase)
        weight = np.clip(self.half_length - np.abs(length) + 0.5, 0, 1)
        weight = weight * np.clip(self.half_height - np.abs(away[2]) + 0.5, 0, 1)
        return np.asarray(wavy, np.float32), np.asarray(weight, np.float32)

    def displace(self, points: Points) -> Points:
        """Map points to their positions before the fragment was displaced."""
        if not self.step:
            return points
        across, weight = self.across_and_weight(points)
        shift = np.where(across > 0, weight * self.step, 0).astype(np.float32)
        u, v, w = (p + shift * np.float32(t) for p, t in zip(points, self._along, strict=True))
        return u, v, w

    def coverage(self, points: Points, pixel_mm: float, size: float) -> Field:
        """Fraction of each pixel that the sheet covers, 0 to 1."""
        across, weight = self.across_and_weight(points)
        across = across * size
        high = np.minimum(across + pixel_mm / 2, self.width / 2)
        low = np.maximum(across - pixel_mm / 2, -self.width / 2)
        return np.asarray(np.clip(high - low, 0, None) / pixel_mm * weight, np.float32)

    @property
    def _along(self) -> Point:
        """Horizontal unit vector in the sheet."""
        n_u, n_v, _ = self.normal
        length = float(np.hypot(n_u, n_v)) or 1.0
        return (-n_v / length, n_u / length, 0.0)


def sample_fractures(level: str, random: np.random.Generator) -> tuple[Fracture, ...]:
    """Sample the sheets of one fractured vertebra: two in C1, one or two in the others.

    Parameters
    ----------
    level : str
        Level of the vertebra, C1 to C7.
    random : numpy.random.Generator
        Generator to sample from.
    """
    sites = _sites(level)
    count = 2 if level == "C1" or random.random() < 0.35 else 1
    chosen = random.choice(len(sites), size=count, replace=False)
    step = float(random.uniform(1.0, 3.0)) if random.random() < 0.5 else 0.0
    return tuple(
        _sample(sites[number], step if not n else 0.0, random) for n, number in enumerate(chosen)
    )


def _sample(
    site: tuple[str, Point, float, float], step: float, random: np.random.Generator
) -> Fracture:
    name, centre, degrees, half_length = site
    side = 1 if random.random() < 0.5 else -1
    angle = np.radians(degrees + random.normal(0, 12))
    lift = random.normal(0, 0.2)
    normal = np.array([side * np.cos(angle), np.sin(angle), lift])
    normal /= np.linalg.norm(normal)
    u, v, w = centre
    jitter = random.normal(0, 0.8, 3)
    return Fracture(
        site=name,
        centre=(side * u + jitter[0], v + jitter[1], w + jitter[2]),
        normal=(float(normal[0]), float(normal[1]), float(normal[2])),
        half_length=half_length,
        half_height=float(random.uniform(2.8, 4.6)),
        width=float(np.clip(random.normal(1.6, 0.35), 0.5, 2.0)),
        wave=(
            float(random.uniform(0.2, 0.8)),
            float(random.uniform(0.3, 0.8)),
            float(random.uniform(0, 6)),
        ),
        step=step,
    )


def _sites(level: str) -> list[tuple[str, Point, float, float]]:
    """Name, centre (u, v, w), angle of the normal from u to v in degrees, and half length in mm."""
    form = FORMS[level]
    if level == "C1":
        return [
            ("anterior arch", (8.0, -9.3, 0.5), 10.0, 7.0),
            ("posterior arch", (13.0, 29.0, -0.5), 45.0, 7.0),
            ("posterior arch near the mass", (19.0, 20.0, 0.5), 75.0, 7.0),
            ("lateral mass", (20.0, 4.0, 0.0), 5.0, 11.0),
        ]
    back = form.depth / 2
    pillar = (form.canal_width / 2 + 4.8, back + 5.0)
    rear = back + form.canal_depth + 2.5
    sites = [
        ("body, sagittal", (2.0, 0.0, 0.0), 5.0, 9.0),
        ("body, coronal", (0.0, -1.5, 0.0), 85.0, 11.0),
        ("body, oblique", (3.0, -1.0, 0.0), 45.0, 10.0),
        ("pedicle", ((form.width * 0.36 + pillar[0]) / 2, back, 0.5), 60.0, 6.0),
        ("articular pillar", (pillar[0], pillar[1], 0.0), 70.0, 8.0),
        ("lamina", (pillar[0] * 0.5, (pillar[1] + rear) / 2 + 2.0, -3.5), 35.0, 6.0),
        ("spinous process", (0.0, rear + form.spinous * 0.45, -4 - form.drop * 0.3), 88.0, 6.0),
    ]
    if level == "C2":
        sites[2] = ("base of the dens", (0.0, -1.0, form.height / 2 + 1.0), 60.0, 8.0)
        sites.append(("pars", (pillar[0] - 1, back + 2.0, 0.0), 80.0, 8.0))
    elif form.width < 24:
        sites.append(("transverse process", (form.width / 2 + 4.5, 3.5, -1.0), 10.0, 8.0))
    return sites
