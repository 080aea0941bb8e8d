"""Which files count as images, with and without plugins; reading each format that is written here."""

import sys
from types import SimpleNamespace

import pytest
from PIL import Image, features

from sdjob.dataset import image_formats
from sdjob.dataset.image_formats import is_read, remedy_for, unread
from sdjob.dataset.images import ImageError, decode, is_image_name, remarks_on, size_of
from tests.sdjob.dataset.test_images import encoded, halves

WRITTEN = {
    "jfif": "JPEG", "jpe": "JPEG", "avif": "AVIF", "jp2": "JPEG2000", "j2k": "JPEG2000", "ppm": "PPM", "pcx": "PCX",
    "tga": "TGA", "sgi": "SGI", "dib": "DIB", "dds": "DDS", "qoi": "QOI", "apng": "PNG", "mpo": "MPO",
}  # fmt: skip


@pytest.fixture
def forgetful():
    """What is read is found again, before and after."""
    for cached in (image_formats._suffixes, image_formats.formats, image_formats.load_plugins):
        cached.cache_clear()
    yield
    for cached in (image_formats._suffixes, image_formats.formats, image_formats.load_plugins):
        cached.cache_clear()


@pytest.mark.parametrize("suffix", WRITTEN)
def test_what_pillow_decodes_is_an_image(tmp_path, suffix):
    assert is_image_name(f"a.{suffix}") and is_image_name(f"a.{suffix.upper()}")
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(encoded(halves("RGB", (250, 0, 0), (0, 0, 250)), WRITTEN[suffix]))
    image = decode(path)
    assert image.size == size_of(path) == (64, 32)
    assert all(abs(a - b) < 9 for a, b in zip(image.getpixel((5, 5)), (250, 0, 0), strict=True))


@pytest.mark.parametrize(
    "suffix", ["pdf", "eps", "wmf", "svg", "ico", "mp4", "mpg", "psd", "fits", "h5", "txt", "json"]
)
def test_what_is_not_trained_on(suffix):
    assert not is_image_name(f"a.{suffix}")


def test_every_suffix_of_a_format_that_pillow_opens_is_decided_on():
    """A new format of Pillow is read at once; the list of the others is complete."""
    Image.init()
    others = {name for suffix, name in Image.registered_extensions().items() if not is_read(suffix[1:])}
    assert others - {*image_formats._OTHER.split()} <= {"PALM"}  # is only written


def test_images_that_are_not_read_have_a_remedy():
    assert unread(["a.HEIC", "b.heif", "c.jxl", "d.cr2", "e.psd", "f.png", "g.txt", "h"]) == {
        "run `pip install pillow-heif`": ["a.HEIC", "b.heif"],
        "run `pip install pillow-jxl-plugin`": ["c.jxl"],
        "export as PNG or JPEG": ["d.cr2", "e.psd"],
    }


@pytest.mark.parametrize(
    ("start", "package"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "pillow-heif"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0", "pillow-heif"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "pillow-jxl-plugin"),
        (b"\xff\x0a\x00\x00", "pillow-jxl-plugin"),
    ],
)
def test_the_content_says_what_is_needed_whatever_the_name(start, package):
    """As a row of a table, or under the name of a JPEG."""
    with pytest.raises(
        ImageError, match=f"of a format that is read with another package: run `pip install {package}`"
    ):
        decode(start + bytes(100))


def test_an_old_pillow_names_what_decodes_avif(forgetful, monkeypatch):
    monkeypatch.setattr(features, "check", lambda feature: feature != "avif")
    assert not is_read("avif") and is_read("jp2")
    assert remedy_for("avif") == "run `pip install 'pillow>=11.3'`"


def test_without_pillow_the_common_formats_are_known(forgetful, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert is_read("webp") and not is_read("avif")


def test_a_plugin_is_loaded_where_it_is_installed(forgetful, monkeypatch):
    """A stand-in that registers what pillow-heif does, for a content of its own."""

    def register():
        Image.register_open(
            "HEIF",
            lambda file, name: Image.new("RGB", (3, 2), "red"),
            lambda start: start[4:12] == b"ftypheic",
        )
        Image.register_extensions("HEIF", [".heic", ".heif"])

    for registry in ("OPEN", "ID", "EXTENSION"):
        value = getattr(Image, registry)
        monkeypatch.setattr(Image, registry, value.copy())
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    assert is_image_name("a.HEIC") and remedy_for("heic") is None
    assert remedy_for("jxl") == "run `pip install pillow-jxl-plugin`"


@pytest.mark.parametrize(
    ("kind", "are_several"),
    [("GIF", True), ("WEBP", True), ("PNG", True), ("TIFF", True), ("AVIF", True), ("MPO", False)],
)
def test_several_frames_are_said(kind, are_several):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert [remark.text for remark in remarks_on(data)] == [
        "hold several frames or pages, of which the first is used"
    ] * are_several
    assert decode(data).getpixel((4, 4))[0] > 240
    assert remarks_on(encoded(frames[0], kind)) == []
