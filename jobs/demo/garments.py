"""Pictures of garments for the generated catalog. Light and position differ from picture to picture."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Point: TypeAlias = tuple[float, float]  # in units of the picture's width and height
Floats: TypeAlias = npt.NDArray[np.float32]

WIDTH, HEIGHT = 96, 128  # pixels
_FINE: Final = 2  # shapes are drawn this many times larger and then reduced, for smooth edges

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "Black": (32, 32, 35), "White": (238, 238, 235), "Grey": (134, 135, 138), "Red": (198, 36, 46),
    "Blue": (44, 82, 180), "Green": (46, 128, 70), "Yellow": (236, 202, 62), "Pink": (238, 150, 182),
    "Brown": (116, 76, 46), "Purple": (116, 62, 150),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Design:
    """The true attributes of a product."""

    kind: str
    colour: str
    pattern: str | None
    sleeve_length: str | None
    neck: str | None
    fabric: str | None
    details: tuple[str, ...]

    def values(self) -> dict[str, str | None]:
        """The single-valued attributes except the kind, by name."""
        names = ("colour", "pattern", "sleeve_length", "neck", "fabric")
        return {name: getattr(self, name) for name in names}


_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)


@dataclass(slots=True)
class _Canvas:
    """A map from the unit square, slightly shifted, scaled and rotated, to a mask drawn `_FINE` times too large."""

    angle: float
    scale: float
    shift: Point
    mask: Image.Image = field(default_factory=lambda: Image.new("L", (WIDTH * _FINE, HEIGHT * _FINE)))

    def at(self, points: Sequence[Point]) -> list[Point]:
        cos, sin = math.cos(self.angle) * self.scale, math.sin(self.angle) * self.scale
        moved = []
        for x, y in points:
            x, y = (x - 0.5) * WIDTH, (y - 0.5) * HEIGHT
            px = x * cos - y * sin + (0.5 + self.shift[0]) * WIDTH
            py = x * sin + y * cos + (0.5 + self.shift[1]) * HEIGHT
            moved.append((px * _FINE, py * _FINE))
        return moved

    def fill(self, points: Sequence[Point], value: int = 255, mirror: bool = False) -> None:
        draw = ImageDraw.Draw(self.mask)
        draw.polygon(self.at(points), fill=value)
        if mirror:
            draw.polygon(self.at([(1 - x, y) for x, y in points]), fill=value)

    def ellipse(self, x: float, y: float, rx: float, ry: float, value: int = 255) -> None:
        turns = [2 * math.pi * i / 24 for i in range(24)]
        self.fill([(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns], value)


def draw(design: Design, noise: np.random.Generator, choose: random.Random) -> bytes:
    """Return a picture of `design` as a JPEG of 96 x 128 pixels, with random light and position."""
    canvas = _Canvas(
        angle=choose.uniform(-0.08, 0.08),
        scale=choose.uniform(0.88, 1.06),
        shift=(choose.uniform(-0.04, 0.04), choose.uniform(-0.03, 0.03)),
    )
    _silhouette(canvas, design)
    cloth = _cloth(design, noise, choose)
    # Folds and a side light, so that no pixel has exactly the colour of the cloth.
    folds = _smooth(noise, 5, 4) * 0.10 + (_X / WIDTH - 0.5) * choose.uniform(-0.3, 0.3)
    cloth = cloth * (1 + folds[..., None])
    ground = np.array(choose.choice([(250, 250, 250), (226, 222, 215), (205, 214, 222), (180, 176, 170)]), np.float32)
    backdrop = ground + _smooth(noise, 4, 3)[..., None] * 14
    cover = np.asarray(canvas.mask.resize((WIDTH, HEIGHT), Image.Resampling.BOX), np.float32)[..., None] / 255
    pixels = np.clip(backdrop * (1 - cover) + cloth * cover, 0, 255)
    picture = Image.fromarray(pixels.astype(np.uint8))
    _draw_details(picture, canvas, design)
    warmth = choose.uniform(-0.06, 0.06)
    light = choose.uniform(0.72, 1.12) * np.array([1 + warmth, 1, 1 - warmth], np.float32)
    grain = noise.standard_normal((HEIGHT, WIDTH, 3), dtype=np.float32) * choose.uniform(2, 9)
    lit = np.clip(np.asarray(picture, np.float32) * light + grain, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(lit).save(buffer, "JPEG", quality=choose.randint(70, 92))
    return buffer.getvalue()


def _smooth(noise: np.random.Generator, rows: int, columns: int) -> Floats:
    """Return noise that varies slowly over the picture: `rows` x `columns` random values, interpolated."""
    coarse = Image.fromarray(noise.standard_normal((rows, columns), dtype=np.float32))
    return np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def _cloth(design: Design, noise: np.random.Generator, choose: random.Random) -> Floats:
    jitter = noise.normal(0, 10, 3)
    base = np.clip(np.array(COLOURS[design.colour]) + jitter, 8, 248).astype(np.float32)
    bright = base.mean() > 125
    second = np.array((35, 35, 45) if bright and choose.random() < 0.6 else (240, 240, 235), np.float32)
    if design.pattern == "Printed":
        second = np.array(choose.choice(list(COLOURS.values())), np.float32)
    cloth = np.broadcast_to(base, (HEIGHT, WIDTH, 3)).copy()
    period = choose.uniform(8, 13)
    angle = choose.uniform(-0.15, 0.15) + (math.pi / 2 if choose.random() < 0.5 else 0)
    along = _X * math.cos(angle) + _Y * math.sin(angle)
    across = _Y * math.cos(angle) - _X * math.sin(angle)
    if design.pattern == "Striped":
        cloth[(along % period) < 0.4 * period] = second
    elif design.pattern == "Checked":
        lines = ((along % period) < 0.35 * period).astype(np.float32) + ((across % period) < 0.35 * period)
        cloth += (second - cloth) * (lines * 0.45)[..., None]
    elif design.pattern == "Dotted":
        dots = (along % period - period / 2) ** 2 + (across % period - period / 2) ** 2 < (0.28 * period) ** 2
        cloth[dots] = second
    elif design.pattern == "Printed":
        cloth[_smooth(noise, 14, 11) > 0.75] = second
    return cloth


def _silhouette(canvas: _Canvas, design: Design) -> None:
    kind = design.kind
    if kind in ("T-shirt", "Shirt", "Sweater", "Dress"):
        wide = 0.03 if kind == "Sweater" else 0.0
        hem = 0.94 if kind == "Dress" else 0.84
        flare = 0.10 if kind == "Dress" else 0.0
        left = [(0.42, 0.17), (0.31 - wide, 0.21), (0.31 - wide, 0.50), (0.31 - wide - flare, hem)]
        canvas.fill(left + [(1 - x, y) for x, y in reversed(left)])
        if design.sleeve_length == "Short Sleeves":
            canvas.fill([(0.33, 0.19), (0.13, 0.35), (0.21, 0.44), (0.33, 0.36)], mirror=True)
        elif design.sleeve_length == "Long Sleeves":
            canvas.fill(
                [(0.33, 0.19), (0.15, 0.42), (0.08, 0.76), (0.18, 0.78), (0.25, 0.50), (0.33, 0.38)], mirror=True
            )
        else:  # armholes
            canvas.fill([(0.27, 0.18), (0.36, 0.20), (0.34, 0.36), (0.27, 0.38)], 0, mirror=True)
        if design.neck == "V-Neck":
            canvas.fill([(0.40, 0.15), (0.60, 0.15), (0.50, 0.36)], 0)
        elif design.neck == "High Neck":
            canvas.fill([(0.42, 0.09), (0.58, 0.09), (0.60, 0.20), (0.40, 0.20)])
        elif design.neck == "Round Neck":
            canvas.ellipse(0.5, 0.17, 0.10, 0.055, 0)
        else:  # a shirt's collar
            canvas.fill([(0.41, 0.13), (0.50, 0.24), (0.42, 0.26), (0.37, 0.18)], mirror=True)
    elif kind == "Trousers":
        canvas.fill([(0.33, 0.08), (0.67, 0.08), (0.72, 0.94), (0.55, 0.94), (0.50, 0.40), (0.45, 0.94), (0.28, 0.94)])
    elif kind == "Skirt":
        canvas.fill([(0.36, 0.22), (0.64, 0.22), (0.80, 0.78), (0.20, 0.78)])
    elif kind == "Bag":
        canvas.ellipse(0.5, 0.36, 0.20, 0.20)
        canvas.ellipse(0.5, 0.36, 0.15, 0.16, 0)
        canvas.fill([(0.22, 0.38), (0.78, 0.38), (0.84, 0.80), (0.16, 0.80)])
    else:  # Shoe
        canvas.fill([(0.10, 0.42), (0.34, 0.40), (0.46, 0.52), (0.84, 0.60), (0.92, 0.68), (0.92, 0.74), (0.10, 0.74)])


_DETAIL_HEIGHT: Final = {"Trousers": 0.22, "Skirt": 0.36, "Bag": 0.52, "Shoe": 0.56}
_BELT: Final = {"Dress": 0.50, "Trousers": 0.10, "Skirt": 0.25}


def _draw_details(picture: Image.Image, canvas: _Canvas, design: Design) -> None:
    def box(left: float, top: float, right: float, bottom: float) -> list[Point]:
        corners = canvas.at([(left, top), (right, top), (right, bottom), (left, bottom)])
        return [(x / _FINE, y / _FINE) for x, y in corners]

    pen = ImageDraw.Draw(picture)
    red, green, blue = COLOURS[design.colour]
    contrast = (20, 20, 25) if red + green + blue > 330 else (245, 245, 240)
    y = _DETAIL_HEIGHT.get(design.kind, 0.38)
    if design.kind == "Shoe":
        pen.polygon(box(0.09, 0.71, 0.93, 0.76), fill=(70, 66, 62))
    if design.kind == "Sweater":
        pen.polygon(box(0.29, 0.80, 0.71, 0.84), fill=tuple(int(c * 0.8) for c in (red, green, blue)))
    if "Belt" in design.details:
        pen.polygon(box(0.30, _BELT[design.kind], 0.70, _BELT[design.kind] + 0.045), fill=(92, 58, 30))
        pen.polygon(box(0.47, _BELT[design.kind], 0.53, _BELT[design.kind] + 0.045), fill=(225, 190, 80))
    if "Pocket" in design.details:
        corners = box(0.55, y, 0.67, y + 0.10)
        pen.line([*corners, corners[0]], fill=contrast, width=2)
    if "Buttons" in design.details:
        for step in range(5):
            (px, py), *_ = box(0.5, y + step * 0.07, 0.5, y)
            pen.ellipse((px - 2, py - 2, px + 2, py + 2), fill=contrast)
    if "Logo" in design.details:
        (px, py), *_ = box(0.40, y + 0.03, 0.5, y)
        pen.ellipse((px - 5, py - 5, px + 5, py + 5), fill=(245, 130, 30), outline=contrast)
