"""The first training images as the trainer sees them: exact pixels, in the order of training, with their prompts."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sdjob.output.layout import OutputLayout
from sdjob.problems import bad_input
from sdtrain.data.buckets import bucketed
from sdtrain.data.streams import Stream, StreamSet
from sdtrain.data.training_images import TrainingImages, to_tensor
from sdtrain.reporting import contact_sheet
from sdtrain.reporting.contact_sheet import Tile, from_tensor, tiles_of
from tests.sdjob.dataset.test_images import encoded

SIZES = [(48, 64), (64, 48), (50, 50), (64, 64), (90, 40)]


@dataclass(frozen=True)
class Noise:
    """An image of random pixels in memory."""

    index: int

    def encoded(self):
        width, height = SIZES[self.index]
        pixels = np.random.default_rng(self.index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return encoded(Image.fromarray(pixels))

    def caption(self):
        return f"caption {self.index}"

    def name(self):
        return f"{self.index}.png"


class Unreadable:
    """Stands for a cache: the sheet is not made from latents."""

    def __getitem__(self, view):
        raise AssertionError("a latent is read")


def images(count=5, **options) -> TrainingImages:
    given = {
        "resolution": 32,
        "center_crop": False,
        "random_flip": True,
        "interpolation": "lanczos",
        "seed": 3,
    }
    return TrainingImages([Noise(index) for index in range(count)], **{**given, **options})


def examples(*streams, **options) -> StreamSet:
    return StreamSet(streams or (Stream("instance", images(), None),), 3, **options)


def same(image, pixels) -> bool:
    return np.array_equal(np.asarray(image), np.asarray(from_tensor(pixels)))


def test_a_tensor_becomes_the_image_that_it_was():
    values = Image.frombytes("RGB", (16, 16), bytes(range(256)) * 3)
    assert from_tensor(to_tensor(values)).tobytes() == values.tobytes()


@pytest.mark.parametrize("position", [0, 7])
def test_the_tiles_are_what_the_loader_gives(position):
    given = examples()
    (tiles,) = tiles_of(given, position).values()
    assert len(tiles) == 5
    for number, tile in enumerate(tiles):
        (example,) = given[position + number]
        assert same(tile.image, example["pixels"]) and tile.image.size == (32, 32)
        assert tile.prompt == example["prompt"]


def test_cached_latents_and_prompts_change_nothing():
    plain = tiles_of(examples(Stream("instance", images(center_crop=True), None)), 0)
    cached = images(center_crop=True, latents=Unreadable())
    found = tiles_of(examples(Stream("instance", cached, None), encodings={}, takes_sizes=True), 0)
    assert [tile.image.tobytes() for tile in found["instance"]] == [
        tile.image.tobytes() for tile in plain["instance"]
    ]


def test_tiles_have_the_shape_of_their_bucket():
    buckets = bucketed(SIZES, 32, 8, 3, "instance", 1)
    given = examples(buckets=buckets)
    (tiles,) = tiles_of(given, 0).values()
    assert [tile.image.size for tile in tiles] == [given.samples(number)[0].size for number in range(5)]
    assert len({tile.image.size for tile in tiles}) > 2


def test_prompts_are_those_that_are_trained_on():
    (tiles,) = tiles_of(examples(Stream("instance", images(), "a photo of sks")), 0).values()
    assert {tile.prompt for tile in tiles} == {"a photo of sks"}
    (tiles,) = tiles_of(examples(proportion_empty_prompts=1.0), 0).values()
    assert {tile.prompt for tile in tiles} == {""}


def test_each_stream_has_its_images():
    two = examples(Stream("instance", images(2), "sks"), Stream("class", images(5), "a dog"))
    assert {name: len(tiles) for name, tiles in tiles_of(two, 0).items()} == {"instance": 2, "class": 5}
    many = TrainingImages([Noise(0)] * 99, 8, True, False, "box", 3)
    assert len(tiles_of(examples(Stream("instance", many, None)), 0)["instance"]) == 16


def test_a_sheet_has_every_tile_at_its_place():
    colors = [(40 * number, 255 - 40 * number, 9) for number in range(6)]
    tiles = [Tile(Image.new("RGB", (80, 64), color), f"prompt {color}") for color in colors]
    sheet = contact_sheet.contact_sheet({"instance": tiles})
    assert sheet.size == (4 * 136 + 8, 2 * (128 + 14 + 8) + 8)
    for number, color in enumerate(colors):
        left, top = 8 + number % 4 * 136, 8 + number // 4 * 150
        for at in ((0, 0), (79, 63)):
            assert sheet.getpixel((left + at[0], top + at[1])) == color
        assert sheet.getpixel((left + 40, top + 64)) == (255, 255, 255)
        text = np.asarray(sheet.crop((left, top + 128, left + 128, top + 142)).convert("L"))
        assert text.min() < 200, "the prompt"
    several = contact_sheet.contact_sheet({"instance": tiles[:2], "class": tiles[2:]})
    assert several.size == (552, 2 * (14 + 150) + 8)
    assert several.getpixel((8, 8 + 14)) == colors[0] and several.getpixel((8, 8 + 164 + 14)) == colors[2]


def test_small_images_are_enlarged_by_whole_pixels():
    image = Image.new("RGB", (32, 16), "red")
    image.putpixel((31, 15), (0, 0, 255))
    sheet = contact_sheet.contact_sheet({"instance": [Tile(image, "")]})
    assert sheet.getpixel((8 + 123, 8 + 59)) == (255, 0, 0)
    assert sheet.crop((8 + 124, 8 + 60, 8 + 128, 8 + 64)).getcolors() == [(16, (0, 0, 255))]
    assert sheet.getpixel((8 + 128, 8 + 60)) == sheet.getpixel((8, 8 + 64)) == (255, 255, 255)


def test_a_sheet_is_bounded():
    tiles = [Tile(Image.new("RGB", (1024, 512), "red"), "x" * 5000)] * 16
    assert contact_sheet.contact_sheet({"instance": tiles}).size == (4 * 264 + 8, 4 * (256 + 14 + 8) + 8)


class Recorder:
    """A tracker that keeps what it is given."""

    def __init__(self):
        self.images, self.texts = [], []

    def image(self, tag, image, step):
        self.images.append((tag, image.size, step))

    def text(self, tag, text):
        self.texts.append((tag, text))


def training(folder, given, is_main=True, first_step=0):
    said = []
    world = SimpleNamespace(is_main=is_main, say=said.append)
    context = SimpleNamespace(layout=OutputLayout(folder), world=world, first_step=first_step)
    return SimpleNamespace(context=context, examples=given, tracker=Recorder(), said=said)


def test_it_is_written_once_by_the_first_rank(tmp_path):
    stream = Stream("instance", images(1), "圆 \x1b[31m")
    other = training(tmp_path, examples(stream), is_main=False)
    contact_sheet.write(other, 0)
    assert not list(tmp_path.iterdir()) and not other.tracker.images
    first = training(tmp_path, examples(stream))
    contact_sheet.write(first, 0)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["inputs.json", "inputs.png"]
    with Image.open(tmp_path / "samples/inputs.png") as sheet:
        assert first.tracker.images == [("training images", sheet.size, 0)]
    assert first.tracker.texts == [("training images", "    0: 圆 \\x1b[31m")]
    assert json.loads((tmp_path / "samples/inputs.json").read_text()) == ["圆 \x1b[31m"]
    resumed = training(tmp_path, examples(stream), first_step=4)
    contact_sheet.write(resumed, 4)
    assert resumed.tracker.images == []
    (tmp_path / "samples/inputs.png").unlink()
    contact_sheet.write(resumed, 4)
    assert [step for _, _, step in resumed.tracker.images] == [4]


def test_a_failure_is_said_and_does_not_stop_training(tmp_path):
    bad = images(1, bad={0: bad_input("0.png", "is empty", "remove it")})
    first = training(tmp_path, examples(Stream("instance", bad, None)))
    contact_sheet.write(first, 0)
    (line,) = first.said
    assert line.startswith(f"no contact sheet in {tmp_path}/samples: 0.png: is empty")
    (tmp_path / "samples").write_text("a file in the way")
    blocked = training(tmp_path, examples())
    contact_sheet.write(blocked, 0)
    assert len(blocked.said) == 1 and blocked.tracker.images == []
