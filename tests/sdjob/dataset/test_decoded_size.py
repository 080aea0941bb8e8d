"""Decoding images is bounded by what their headers say."""

import io
import os
import subprocess
import sys
import threading
import tracemalloc

import pytest
from PIL import Image

from sdjob.dataset import decoded_size
from sdjob.dataset.images import ImageError, decode, remarks_on
from tests.support.hostile import claiming_png
from tests.support.worker import PROJECT


def test_an_image_that_takes_too_much_is_refused_before_it_is_decoded():
    content = claiming_png(9000, 9000)
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


PEAK = """
import resource, sys
from pathlib import Path
from PIL import Image
from sdjob.dataset import decoded_size, images
small, large = map(Path, sys.argv[1:])
images.decode(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
images.decode(large)
taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
with images._opened(large) as image:
    print(taken, decoded_size._needed(image, False))
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes")
@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *(("png", mode) for mode in ("RGB", "RGBA", "L", "P", "I;16", "LA", "1")),
        *(("jpg", mode) for mode in ("RGB", "L", "CMYK")),
        *((suffix, mode) for suffix in ("webp", "avif", "jp2") for mode in ("RGB", "RGBA")),
        *(("tiff", mode) for mode in ("RGB", "RGBA", "F", "I;16", "LAB")),
        *((suffix, "RGB") for suffix in ("gif", "bmp", "ppm", "tga", "sgi", "pcx", "dib", "dds", "qoi")),
    ],
)
def test_decoding_takes_no_more_memory_than_is_reserved(tmp_path, suffix, mode):
    """Of each format, since readers hold buffers of their own."""
    options = {"webp": {"lossless": True, "method": 0, "quality": 0}, "avif": {"speed": 10}}
    paths = [tmp_path / f"{size}.{suffix}" for size in (16, 3000)]
    for path, size in zip(paths, (16, 3000), strict=True):
        try:
            Image.new(mode, (size, size)).save(path, **options.get(suffix, {}))
        except KeyError:
            pytest.skip("this build of Pillow does not write it")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, paths)],
        env={"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    taken, reserved = map(int, done.stdout.split())
    assert taken <= 1.1 * reserved + (4 << 20)


def test_a_file_that_readers_would_read_as_a_whole_is_refused_by_its_size(tmp_path):
    path = tmp_path / "a.webp"
    Image.new("RGB", (8, 8)).save(path)
    os.truncate(path, decoded_size.ENCODED + 1)
    with pytest.raises(ImageError) as caught:
        decode(path)
    assert caught.value.reason == "has 268 MB; at most 268 MB are read: make it smaller"


def test_an_image_of_a_reader_with_buffers_of_its_own_is_refused_sooner():
    image = Image.new("RGB", (1, 1))
    image._size = (100_000, 1000)
    with decoded_size.reserved(image, turned=False):
        pass
    image.format = "WEBP"
    with pytest.raises(decoded_size.TooLarge), decoded_size.reserved(image, turned=False):
        pass
