"""Colors by a profile become sRGB, with the values that the definitions of the color spaces give."""

import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from sdjob.dataset import color_profiles
from sdjob.dataset.color_profiles import ProfileError, is_srgb, name_of, to_srgb
from sdjob.dataset.images import _BAD_PROFILE, decode, remarks_on
from tests.sdjob.dataset.test_images import encoded
from tests.support import icc

DISPLAY_P3 = icc.rgb("Display P3", icc.P3, icc.SRGB_CURVE)
ADOBE_RGB = icc.rgb("Adobe RGB (1998)", icc.ADOBE, icc.gamma(563 / 256))
GREY = icc.grey("Gray Gamma 1.8", icc.gamma(1.8))
CMYK = icc.cmyk("Grey inks")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def linear(value):
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def by_definition(color, primaries, to_linear):
    """The sRGB values of a color, by the matrices of both spaces."""
    xyz = np.array(primaries).T @ [to_linear(value / 255) for value in color]
    light = np.clip(np.linalg.solve(np.array(icc.SRGB).T, xyz), 0, 1)
    values = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return tuple(round(255 * value) for value in values)


def near(actual, expected):
    return max(abs(a - b) for a, b in zip(actual, expected, strict=True)) <= 1


@pytest.mark.parametrize("color", [(255, 80, 40), (200, 120, 90), (0, 255, 0), (30, 30, 30), (255, 255, 255)])
@pytest.mark.parametrize(
    ("profile", "primaries", "to_linear"),
    [(DISPLAY_P3, icc.P3, linear), (ADOBE_RGB, icc.ADOBE, lambda value: value ** (563 / 256))],
)
def test_rgb_is_converted_by_primaries_and_curve(color, profile, primaries, to_linear):
    expected = by_definition(color, primaries, to_linear)
    assert near(to_srgb(Image.new("RGB", (2, 2), color), profile).getpixel((1, 1)), expected)


def test_known_values_of_display_p3():
    """As a viewer shows them."""
    assert to_srgb(Image.new("RGB", (2, 2), (255, 80, 40)), DISPLAY_P3).getpixel((0, 0)) == (255, 57, 0)
    assert to_srgb(Image.new("RGB", (2, 2), (200, 120, 90)), DISPLAY_P3).getpixel((0, 0)) == (213, 115, 83)


@pytest.mark.parametrize("profile", [SRGB, icc.rgb("by its numbers", icc.SRGB, icc.SRGB_CURVE)])
def test_srgb_is_not_touched(profile):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert is_srgb(profile, "RGB") and is_srgb(profile, "L")
    assert to_srgb(noise, profile).tobytes() == noise.tobytes()
    assert decode(encoded(noise, icc_profile=profile)).tobytes() == noise.tobytes()
    assert remarks_on(encoded(noise, icc_profile=profile)) == []


def test_grey_is_converted_by_its_curve():
    expected = round(255 * (1.055 * (100 / 255) ** (1.8 / 2.4) - 0.055))
    assert near(to_srgb(Image.new("L", (2, 2), 100), GREY).getpixel((0, 0)), (expected,) * 3)


def test_inks_are_converted_by_their_table():
    inks = {(0, 0, 0, 0): 255, (0, 0, 0, 255): 0, (255, 0, 0, 0): 119, (0, 255, 0, 0): 255, (0, 0, 255, 0): 0}
    for ink, expected in inks.items():
        assert near(to_srgb(Image.new("CMYK", (2, 2), ink), CMYK).getpixel((0, 0)), (expected,) * 3), ink


def test_neutral_lab_is_grey():
    image = Image.frombytes("LAB", (1, 1), bytes((128, 0, 0)))  # L* 50
    assert near(decode(encoded(image, "TIFF")).getpixel((0, 0)), (119, 119, 119))


P3_COLOR, P3_SHOWN = (200, 120, 90), (213, 115, 83)


def halved(color):
    """A color at half opacity on white."""
    return tuple(round((value * 128 + 255 * 127) / 255) for value in color)


@pytest.mark.parametrize(
    ("image", "kind", "options", "expected"),
    [
        (Image.new("RGB", (8, 8), P3_COLOR), "PNG", {}, P3_SHOWN),
        (Image.new("RGB", (8, 8), P3_COLOR), "TIFF", {}, P3_SHOWN),
        (Image.new("RGB", (8, 8), P3_COLOR), "WEBP", {"lossless": True}, P3_SHOWN),
        (Image.new("RGB", (8, 8), P3_COLOR), "AVIF", {"quality": 100, "subsampling": "4:4:4"}, P3_SHOWN),
        (Image.new("RGB", (8, 8), P3_COLOR), "JPEG", {"quality": 100, "subsampling": 0}, P3_SHOWN),
        (Image.new("RGBA", (8, 8), (*P3_COLOR, 128)), "PNG", {}, halved(P3_SHOWN)),
        (Image.new("RGB", (8, 8), P3_COLOR).quantize(4), "PNG", {}, P3_SHOWN),
        (Image.new("L", (8, 8), 90), "PNG", {}, (90, 90, 90)),
        (Image.new("LA", (8, 8), (90, 128)), "PNG", {}, halved((90, 90, 90))),
        (Image.new("I;16", (8, 8), 90 * 257), "PNG", {}, (90, 90, 90)),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "mode", None),
)
def test_every_mode_and_format_is_converted(image, kind, options, expected):
    data = encoded(image, kind, icc_profile=DISPLAY_P3, **options)
    found = decode(data)
    assert found.mode == "RGB"
    assert near(found.getpixel((4, 4)), expected)
    ((text, is_warning),) = remarks_on(data)
    assert (text, is_warning) == ("are converted to sRGB from Display P3", False)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_images_have_profiles_of_grey(mode):
    values = {"L": 100, "LA": (100, 255), "I;16": 25700}
    expected = to_srgb(Image.new("L", (2, 2), 100), GREY).getpixel((0, 0))
    assert expected != (100, 100, 100)
    assert (
        decode(encoded(Image.new(mode, (8, 8), values[mode]), icc_profile=GREY)).getpixel((4, 4)) == expected
    )


def test_print_images_have_profiles_of_their_inks():
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for kind in ("JPEG", "TIFF"):
        assert near(decode(encoded(image, kind, icc_profile=CMYK)).getpixel((4, 4)), (119, 119, 119))


DAMAGED = {
    "cut in its header": DISPLAY_P3[:100],
    "cut in its tags": DISPLAY_P3[:300],
    "of other colors": GREY,
    "not a profile": b"x" * 500,
    "a header alone": DISPLAY_P3[:128],
    "of an unknown kind": DISPLAY_P3[:12] + b"????" + DISPLAY_P3[16:],
}


@pytest.mark.parametrize("profile", DAMAGED.values(), ids=DAMAGED)
def test_an_image_with_a_damaged_profile_is_read_as_srgb_and_that_is_said(profile):
    data = encoded(Image.new("RGB", (8, 8), P3_COLOR), icc_profile=profile)
    assert decode(data).getpixel((4, 4)) == P3_COLOR
    assert remarks_on(data) == [_BAD_PROFILE]
    with pytest.raises(ProfileError):
        to_srgb(Image.new("RGB", (8, 8)), profile)


def test_profiles_have_names():
    assert name_of(DISPLAY_P3) == "Display P3" and name_of(GREY) == "Gray Gamma 1.8"
    with pytest.raises(ProfileError):
        name_of(b"")


def test_a_transform_is_built_once_and_shared_by_threads(monkeypatch):
    color_profiles._transform.cache_clear()
    built = []
    build = ImageCms.buildTransform
    monkeypatch.setattr(ImageCms, "buildTransform", lambda *of: built.append(of) or build(*of))
    one = encoded(Image.new("RGB", (64, 64), P3_COLOR), icc_profile=DISPLAY_P3)
    assert decode(one).getpixel((0, 0)) == P3_SHOWN
    with ThreadPoolExecutor(8) as threads:
        assert {image.getpixel((9, 9)) for image in threads.map(decode, [one] * 64)} == {P3_SHOWN}
    assert len(built) == 1


def test_the_sizes_in_a_header_are_not_believed():
    """A profile that says to be larger than it is."""
    profile = struct.pack(">I", 1 << 30) + DISPLAY_P3[4:]
    assert decode(encoded(Image.new("RGB", (8, 8), P3_COLOR), icc_profile=profile)).size == (8, 8)
