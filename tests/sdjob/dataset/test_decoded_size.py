"""Decoding images is bounded by what their headers say."""

import io
import struct
import threading
import tracemalloc
import zlib

import pytest
from PIL import Image

from sdjob.dataset import decoded_size
from sdjob.dataset.images import ImageError, decode, remarks_on


def claiming(width: int, height: int, color_type: int = 6) -> bytes:
    """A PNG whose header claims a size, with 8 bits for each channel."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def test_an_image_that_takes_too_much_is_refused_before_it_is_decoded():
    content = claiming(9000, 9000)
    tracemalloc.start()
    for read in (decode, remarks_on):
        with pytest.raises(ImageError) as caught:
            read(content)
        assert caught.value.reason == (
            "has 9,000 × 9,000 pixels (RGBA), which take 1.3 GB to decode; at most 805 MB are used: make it smaller"
        )
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("mode", "turned", "megapixels"),
    [("RGB", False, 201), ("RGB", True, 100), ("L", False, 161), ("RGBA", False, 50)],
)
def test_a_conversion_needs_copies(mode, turned, megapixels):
    image = Image.new(mode, (1, 1))
    for size, fits in ((megapixels, True), (megapixels + 1, False)):
        image._size = (size * 1000, 1000)
        try:
            with decoded_size.reserved(image, turned=turned):
                assert fits
        except decoded_size.TooLarge:
            assert not fits


def test_images_wait_for_each_other():
    image = Image.new("RGB", (1, 1))
    image._size = (150_000, 1000)
    second = threading.Event()

    def decode_another() -> None:
        with decoded_size.reserved(image, turned=False):
            second.set()

    with decoded_size.reserved(image, turned=False):
        thread = threading.Thread(target=decode_another)
        thread.start()
        assert not second.wait(0.2)
    assert second.wait(20)
    thread.join()


def test_a_decoded_image_lives_without_its_file(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2), "red").save(path)
    image = decode(path)
    path.unlink()
    file = io.BytesIO()
    image.save(file, "PNG")
    assert image.tobytes() == b"\xff\0\0" * 6 and image.resize((1, 1)).getpixel((0, 0)) == (255, 0, 0)
