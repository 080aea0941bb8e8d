"""Colors by an embedded ICC profile (Display P3 of phones, Adobe RGB, CMYK of print, grey) → sRGB."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageCms import ImageCmsTransform

_SAME = 1  # of 255: a profile whose colors differ by no more from sRGB is sRGB
_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}  # mode → color space in a profile
_STEPS = 9  # colors a channel that a profile is tried on


class ProfileError(Exception):
    """A profile that is damaged or does not fit its image."""


def to_srgb(image: Image, profile: bytes) -> Image:
    """An RGB, L or CMYK image whose numbers mean colors of `profile` → RGB; itself, as RGB, where that is sRGB.

    An L image may have a profile of RGB: grey is then a color with three equal numbers. Raises ProfileError.
    """
    mode = _mode_for(profile, image.mode)
    transform = _transform(profile, mode)
    image = image if image.mode == mode else image.convert(mode)
    return image.convert("RGB") if transform is None else transform.apply(image)


def is_srgb(profile: bytes, mode: str) -> bool:
    """Whether the numbers of such an image are colors in sRGB already. Raises ProfileError."""
    return _transform(profile, _mode_for(profile, mode)) is None


def _mode_for(profile: bytes, mode: str) -> str:
    """The mode that a profile is applied to. Raises ProfileError where it does not fit the image."""
    space = _space(profile)
    if mode == "L" and space == "RGB ":
        return "RGB"
    if _SPACES.get(mode) != space:
        raise ProfileError(f"is for {space.strip() or 'no'} colors, and the image has {mode}")
    return mode


def lab_to_srgb(image: Image) -> Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)


def name_of(profile: bytes) -> str:
    """What a profile calls itself, such as "Display P3". Raises ProfileError."""
    from PIL import ImageCms

    try:
        opened = ImageCms.ImageCmsProfile(BytesIO(profile))
        return str(opened.profile.profile_description or opened.profile.xcolor_space).strip()
    except (OSError, ImageCms.PyCMSError) as error:
        raise ProfileError(str(error)) from error


def _space(profile: bytes) -> str:
    """The color space of a profile, from its header: four letters. Raises ProfileError."""
    if len(profile) < 128 or profile[36:40] != b"acsp":
        raise ProfileError("is not an ICC profile")
    return profile[16:20].decode("latin-1")


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCmsTransform | None:
    """The transform of a profile, which threads may share; None: the profile is sRGB. Raises ProfileError."""
    from PIL import ImageCms

    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return None if mode != "CMYK" and _is_identity(transform, mode) else transform
    except (OSError, ImportError, ImageCms.PyCMSError) as error:  # ImportError: Pillow without LittleCMS
        raise ProfileError(str(error)) from error


def _is_identity(transform: ImageCmsTransform, mode: str) -> bool:
    """Whether colors spread over the whole range, and all greys, stay the same within `_SAME`."""
    from PIL import Image, ImageChops

    levels = [round(255 * step / (_STEPS - 1)) for step in range(_STEPS)]
    grid = [(r, g, b) for r in levels for g in levels for b in levels]
    tried = bytes(value for color in (*grid, *((grey,) * 3 for grey in range(256))) for value in color)
    before = Image.frombytes("RGB", (len(tried) // 3, 1), tried)
    if mode == "L":
        before = before.convert("L")
    difference = ImageChops.difference(transform.apply(before), before.convert("RGB"))
    return max(difference.tobytes()) <= _SAME
