"""Every kind of image becomes upright 8-bit RGB, or is refused with a reason."""

import io
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import ExifTags, Image, ImageFile
from PIL.Image import Transpose

from sdjob.dataset import images
from sdjob.dataset.images import ImageError, decode, remarks_on, size_of, source_of


def encoded(image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def halves(mode, left, right, size=(64, 32)):
    """An image of two colours, side by side."""
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def png_16_bit_rgb(*pixels) -> bytes:
    """One row of 16-bit RGB pixels, a format that Pillow reads but does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + b"".join(struct.pack(">3H", *pixel) for pixel in pixels)
    header = struct.pack(">2I5B", len(pixels), 1, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row))
        + chunk(b"IEND", b"")
    )


def near(actual, expected, tolerance=3):
    return all(abs(a - b) <= tolerance for a, b in zip(actual, expected, strict=True))


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image = decode(encoded(halves("RGB", "red", "blue"), "JPEG", exif=exif, quality=95))
    assert image.size == (32, 64)
    assert near(image.getpixel((16, 8)), (254, 0, 0)) and near(image.getpixel((16, 56)), (0, 0, 254))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_cost_the_image():
    data = encoded(halves("RGB", "red", "blue"), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert decode(data).size == (64, 32)


def test_transparent_palette_entry_becomes_white():
    image = halves("P", 1, 2)
    image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
    for kind in ("PNG", "GIF"):
        result = decode(encoded(image, kind, transparency=1))
        assert result.mode == "RGB"
        assert result.getpixel((5, 5)) == (255, 255, 255)
        assert result.getpixel((60, 5)) == (40, 50, 60)


def test_palette_without_transparency():
    image = halves("P", 1, 2)
    image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
    assert decode(encoded(image)).getpixel((5, 5)) == (10, 20, 30)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (8, 8), (255, 0, 0, 128)), (255, 127, 127)),
        (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("LA", (8, 8), (0, 128)), (127, 127, 127)),
        (Image.new("L", (8, 8), 77), (77, 77, 77)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
        (Image.new("RGB", (8, 8), (1, 2, 3)), (1, 2, 3)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_modes_of_png(image, expected):
    result = decode(encoded(image))
    assert result.mode == "RGB"
    assert near(result.getpixel((3, 3)), expected, 1)


def test_cmyk_jpeg():
    result = decode(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95))
    assert result.mode == "RGB"
    assert near(result.getpixel((8, 8)), (0, 255, 255))


def test_16_bit_grey_keeps_its_range():
    image = Image.new("I;16", (3, 1))
    for x, value in enumerate((0, 32768, 65535)):
        image.putpixel((x, 0), value)
    result = decode(encoded(image))
    assert [result.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_dark_16_bit_image_stays_dark():
    assert decode(encoded(Image.new("I;16", (4, 4), 257 * 10))).getpixel((0, 0)) == (10, 10, 10)


def test_16_bit_colour():
    result = decode(png_16_bit_rgb((65535, 0, 257 * 100), (0, 32768, 65535)))
    assert near(result.getpixel((0, 0)), (255, 0, 100), 1) and near(result.getpixel((1, 0)), (0, 128, 255), 1)


@pytest.mark.parametrize(
    ("mode", "value", "expected"), [("I", 65535, 255), ("I", 257, 1), ("F", 0.5, 128), ("F", 128.0, 128)]
)
def test_wide_modes_of_tiff(mode, value, expected):
    image = Image.new(mode, (4, 4), value)
    assert near(decode(encoded(image, "TIFF")).getpixel((0, 0)), (expected,) * 3, 1)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert near(decode(data).getpixel((4, 4)), (255, 0, 0), 6)


def noise(size=(200, 200)):
    return Image.effect_noise(size, 90).convert("RGB")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated_images_are_refused(tmp_path, kind, kept):
    data = encoded(noise(), kind)
    path = tmp_path / "cut"
    path.write_bytes(data[: int(len(data) * kept)])
    for source in (path, path.read_bytes()):
        with pytest.raises(ImageError):
            decode(source)


def test_a_jpeg_that_lacks_its_last_bytes_is_refused():
    with pytest.raises(ImageError, match="truncated"):
        decode(encoded(noise(), "JPEG")[:-20])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"just some text", "not an image"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
            "not an image",
        ),  # runs a program
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "decoded|not an image"),
    ],
)
def test_files_that_are_no_images(tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(ImageError, match=reason) as caught:
            decode(source)
        assert caught.value.reason == str(caught.value)


def test_paths_that_cannot_be_opened(tmp_path):
    with pytest.raises(ImageError, match="does not exist"):
        decode(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="cannot be read"):
        decode(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "device.png"):  # not waited for, not read
        for read in (decode, size_of, remarks_on):
            with pytest.raises(ImageError, match=r"cannot be read \(not a regular file\)"):
                read(tmp_path / name)


def test_a_bomb_is_refused_with_its_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"more than 2,000 pixels"):
        decode(encoded(Image.new("RGB", (100, 100))))


def test_values_of_tables():
    folder = Path("/data")
    assert source_of({"bytes": b"x", "path": "a.png"}, folder) == b"x"
    assert source_of({"bytes": None, "path": "a.png"}, folder) == folder / "a.png"
    assert source_of(b"x", folder) == b"x"
    assert source_of("/data/b/a.png", folder) == Path("/data/b/a.png")
    for outside in ("/etc/passwd", "../a.png", "b/../../a.png", "/data2/a.png"):
        with pytest.raises(ImageError, match="names a file outside of the dataset"):
            source_of({"path": outside}, folder)
    for nothing in (None, {"bytes": None, "path": None}, "", 3):
        with pytest.raises(ImageError, match="does not hold an image"):
            source_of(nothing, folder)


# --- sizes -------------------------------------------------------------------------------------------


def with_late_exif(png: bytes, exif: Image.Exif) -> bytes:
    """A PNG whose EXIF comes after its pixels, as some programs write it."""
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return png[:-12] + chunk + png[-12:]


ORIENTED = {  # what Image.transpose undoes, by orientation of the EXIF
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}
WITH_EXIF = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "late PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF, LZW": {"compression": "tiff_lzw"},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


@pytest.mark.parametrize("kind", WITH_EXIF)
@pytest.mark.parametrize("orientation", ORIENTED)
def test_an_image_is_turned_once_and_its_size_is_that_of_the_upright_image(tmp_path, kind, orientation):
    upright = Image.new("RGB", (48, 24), "white")
    upright.paste("red", (0, 0, 16, 8))
    upright.paste("blue", (32, 16, 48, 24))
    stored = upright if ORIENTED[orientation] is None else upright.transpose(ORIENTED[orientation])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if kind == "late PNG":
        data = with_late_exif(encoded(stored, "PNG"), exif)
    else:
        data = encoded(stored, kind.split(",")[0], exif=exif, **WITH_EXIF[kind])
    (tmp_path / "a").write_bytes(data)
    assert images.size_of(data) == images.size_of(tmp_path / "a") == (48, 24)
    found = decode(data)
    assert found.size == (48, 24)
    for at, expected in {
        (7, 3): (255, 0, 0),
        (40, 20): (0, 0, 255),
        (40, 3): (255,) * 3,
        (7, 20): (255,) * 3,
    }.items():
        assert near(found.getpixel(at), expected, 8), at


def test_an_orientation_in_the_xmp_of_a_tiff_counts(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(halves("RGB", "red", "blue"), "TIFF", tiffinfo={700: xmp})
    assert images.size_of(data) == decode(data).size == (32, 64)
    assert decode(data).getpixel((16, 8)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_size_costs_no_decoding(kind, monkeypatch):
    data = encoded(noise((2000, 500)), kind)

    def load(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert images.size_of(data) == (2000, 500)


def test_names_of_images():
    assert all(map(images.is_image_name, ("a.jpg", "b.JPEG", "ü x.Png", "c.webp", "d.tif", "e.GIF", "f.bmp")))
    assert not any(map(images.is_image_name, ("a.txt", "jpg", ".jpg", "a.jpg.txt", "b")))
