"""Colours as a viewer shows them: pixels of a picture with an ICC profile to sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image, ImageCms

MAX_BYTES: Final = 3 * 2**20  # of a profile: those of printing presses have two megabytes

# ICC.1's multiProcessElementsType: any number of steps, each a few bytes, or the same bytes for all. A profile of 17 kB took
# ten seconds. Cameras and editors write matrices and tables.
_PROGRAM: Final = b"mpet"
_SPACES: Final = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}  # mode to the profile's own name for its colours
_SAME: Final = 2  # levels: the profiles that all call themselves sRGB differ by that
_STEPS: Final = 6  # of each channel, where it is asked how far a profile is from sRGB


def to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Return `picture`, in RGB, grey or CMYK, in sRGB; unchanged where its profile is sRGB's, or broken, or for other colours.

    So it is where the profile is a program of steps (`_PROGRAM`): no bound is known for what they cost.
    """
    if not profile or len(profile) > MAX_BYTES or _PROGRAM in profile:
        return picture
    transform = _transform(profile, picture.mode)
    return picture if transform is None else transform.apply(picture)


@lru_cache(maxsize=8)  # a shop's pictures have few profiles
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != _SPACES.get(mode):
            return None
        transform = ImageCms.ImageCmsTransform(
            source,
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            mode,
            "RGB",
            flags=ImageCms.Flags.NOCACHE,  # threads share it
        )
        return None if mode != "CMYK" and _changes_little(transform, mode) else transform
    except Exception:  # a broken profile: littlecms has no list of what it raises, and a picture is worth more
        return None


def _changes_little(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = np.linspace(0, 255, _STEPS, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    colours = Image.fromarray(cube if mode == "RGB" else np.arange(256, dtype=np.uint8)[np.newaxis])
    before, after = (np.asarray(picture.convert("RGB"), dtype=int) for picture in (colours, transform.apply(colours)))
    return int(np.abs(before - after).max()) <= _SAME
