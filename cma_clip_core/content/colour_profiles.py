"""Conversion of pictures with an ICC profile to sRGB, the colours that a viewer shows."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image, ImageCms

MAX_BYTES: Final = 3 * 2**20  # size limit of a profile; those of printing presses have two megabytes

# ICC.1's multiProcessElementsType: any number of steps of a few bytes each, which may even share their bytes. A
# profile of 17 kB took ten seconds. Cameras and editors write matrices and tables instead.
_PROGRAM: Final = b"mpet"
_SPACES: Final = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}  # Pillow's mode to the profile's name of its colour space
_SAME: Final = 2  # levels of 255; different profiles called sRGB differ by this much
_STEPS: Final = 6  # levels of each channel at which a profile is compared with sRGB


def to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Return `picture`, which is in RGB, grey or CMYK, converted to sRGB.

    The picture is unchanged if its profile

    * is missing, broken, or larger than `MAX_BYTES`;
    * is for another colour space;
    * is practically sRGB, and the picture is not in CMYK;
    * contains a program of steps (`_PROGRAM`), whose cost has no known bound.
    """
    if not profile or len(profile) > MAX_BYTES or _PROGRAM in profile:
        return picture
    transform = _transform(profile, picture.mode)
    return picture if transform is None else transform.apply(picture)


@lru_cache(maxsize=8)  # a shop's pictures use few profiles
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
            flags=ImageCms.Flags.NOCACHE,  # threads share the transform
        )
        return None if mode != "CMYK" and _changes_little(transform, mode) else transform
    except Exception:  # broken profile: littlecms documents no error types, and the picture still has value
        return None


def _changes_little(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = np.linspace(0, 255, _STEPS, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    colours = Image.fromarray(cube if mode == "RGB" else np.arange(256, dtype=np.uint8)[np.newaxis])
    before, after = (np.asarray(picture.convert("RGB"), dtype=int) for picture in (colours, transform.apply(colours)))
    return int(np.abs(before - after).max()) <= _SAME
