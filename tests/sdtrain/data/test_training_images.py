"""Training examples depend on their position in the stream alone."""

import copy
import itertools
import pickle
from dataclasses import dataclass
from itertools import chain

import pytest
import torch
from PIL import Image, ImageOps
from PIL.Image import Resampling
from torch.utils.data import DataLoader

from sdjob.dataset.verify import Examined
from sdjob.problems import JobError, bad_input
from sdtrain.data.sampling import Sample, sample_generator
from sdtrain.data.sources import open_source
from sdtrain.data.training_images import SampleError, TrainingImages, cropped, to_tensor, verify
from tests.sdjob.dataset.test_images import encoded
from tests.sdtrain.data.test_sources import info_of, metadata_folder, parquet_folder, png
from tests.support.datasets import PNG

# --- verification ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InMemory:
    """An image of a source in memory."""

    index: int
    image: bytes

    def encoded(self):
        return self.image

    def caption(self):
        return None

    def name(self):
        return f"image {self.index}"


def test_verify_shares_the_work_and_names_what_is_bad(tmp_path):
    folder = metadata_folder(tmp_path / "a", 10)
    for number in (0, 3, 9):
        (folder / f"sub/{number:02d} ü.png").write_bytes(png(number)[:40])
    source = open_source(info_of(folder), None)
    assert verify(source, "none", 0, 1).count == 0
    by_rank = [verify(source, "all", rank, 4).problems for rank in range(4)]
    assert [list(found) for found in by_rank] == [[0], [9], [], [3]]
    assert by_rank[1][9].subject.endswith("09 ü.png") and by_rank[1][9].code == 66


def test_verify_sample_is_bounded_and_spread():
    looked_at = []

    class Source:
        def __len__(self):
            return 100_000

        def __getitem__(self, index):
            looked_at.append(index)
            return InMemory(index, PNG)

    for rank in range(2):
        assert verify(Source(), "sample", rank, 2) == Examined(32, {}, {})
    looked_at.sort()
    assert len(looked_at) == 64 and looked_at[0] == 0 and looked_at[-1] == 99_999
    assert max(b - a for a, b in itertools.pairwise(looked_at)) < 1700


# --- transforms --------------------------------------------------------------------------------------


def photo(size):
    """Smooth colours with some noise, so that a wrong place or filter shows."""
    gradient = Image.linear_gradient("L").resize(size)
    mixed = Image.merge("RGB", (gradient, gradient.transpose(Image.Transpose.ROTATE_180), gradient))
    values = torch.randint(256, (3 * size[0] * size[1],), generator=torch.Generator().manual_seed(0))
    noise = Image.frombytes("RGB", size, bytes(values.tolist()))
    return Image.blend(mixed, noise, 0.2)


@pytest.mark.parametrize("interpolation", ["lanczos", "bicubic", "bilinear", "box", "nearest"])
@pytest.mark.parametrize("size", [(301, 200), (97, 260), (40, 61), (64, 64)])
@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("target", [(64, 64), (96, 48)], ids="{0[0]}x{0[1]}".format)
def test_cropping_is_resize_then_crop(size, target, interpolation, random):
    """The reference is torchvision's Resize and CenterCrop/RandomCrop, written with Pillow."""
    image = photo(size)
    scale = max(target[0] / size[0], target[1] / size[1])
    new = tuple(max(goal, int(length * scale + 1e-9)) for goal, length in zip(target, size, strict=True))
    resized = image.resize(new, Resampling[interpolation.upper()])
    place = sample_generator(0, at(1, 2, 0), "crop") if random else None
    result = cropped(image, target, place, interpolation)
    place = sample_generator(0, at(1, 2, 0), "crop")
    left, top = (
        int(torch.randint(length - goal + 1, (), generator=place)) if random else round((length - goal) / 2.0)
        for goal, length in zip(target, new, strict=True)
    )
    expected = resized.crop((left, top, left + target[0], top + target[1]))
    difference = (to_tensor(result).int() - to_tensor(expected).int()).abs()
    is_square = target[0] == target[1]  # its scale is mostly a fraction of whole numbers, and rounds alike
    assert (difference > 0).float().mean() < (0.05 if is_square else 0.5)
    sharp = ("box",) if is_square else ("box", "nearest")
    if interpolation not in sharp:  # whose edges rounding can move by a pixel
        assert difference.max() <= 3


def test_to_tensor_keeps_the_bytes_in_planes():
    image = Image.new("RGB", (3, 2), (255, 0, 127))
    image.putpixel((2, 0), (0, 255, 0))
    tensor = to_tensor(image)
    assert tensor.shape == (3, 2, 3) and tensor.dtype == torch.uint8 and tensor.is_contiguous()
    assert tensor[:, 0, 2].tolist() == [0, 255, 0] and tensor[:, 1, 0].tolist() == [255, 0, 127]


class Images:
    """A source in memory."""

    def __init__(self, *images):
        self.images = tuple(map(encoded, images))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return InMemory(index, self.images[index])


def at(epoch: int, position: int, index: int, stream: str = "instance") -> Sample:
    return Sample(epoch, position, index, stream)


def training(source, **options):
    defaults = {"resolution": 32, "center_crop": False, "random_flip": True, "interpolation": "lanczos"}
    return TrainingImages(source, **{**defaults, "seed": 5, **options})


def test_an_example_has_all_that_is_promised():
    item = training(Images(photo((90, 50))))[at(0, 3, 0)]
    assert item["pixels"].shape == (3, 32, 32)
    assert item["pixels"].dtype == torch.uint8 and item["pixels"].min() < item["pixels"].max()
    assert (item["caption"], item["name"], item["sample"]) == ("", "image 0", at(0, 3, 0))


def test_crop_and_flip_depend_on_the_place_in_the_stream_only():
    images = training(Images(photo((90, 50)), photo((90, 50))))
    torch.manual_seed(1)
    first = [images[at(0, position, 0)]["pixels"] for position in range(16)]
    torch.manual_seed(2)
    again = [images[at(0, position, 0)]["pixels"] for position in reversed(range(16))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert sum(torch.equal(first[0], other) for other in first[1:]) < 3
    assert not torch.equal(first[0], images[at(1, 0, 0)]["pixels"])
    other_seed = training(Images(photo((90, 50))), seed=6)
    assert not all(torch.equal(first[n], other_seed[at(0, n, 0)]["pixels"]) for n in range(4))


def test_streams_share_neither_crops_nor_flips():
    images = training(Images(photo((90, 50))))
    pairs = [[images[at(0, n, 0, name)]["pixels"] for name in ("instance", "class")] for n in range(8)]
    assert not any(torch.equal(one, other) for one, other in pairs)


def test_crops_reach_every_place_and_flips_are_fair():
    stripes = Image.new("RGB", (64, 32))
    for x in range(64):
        stripes.paste((x * 4, 0, 0), (x, 0, x + 1, 32))
    images = training(Images(stripes), interpolation="nearest")
    rows = [images[at(0, position, 0)]["pixels"][0, 0] for position in range(400)]
    flipped = [bool(row[0] > row[-1]) for row in rows]
    lefts = {int(row.min()) // 4 for row in rows}
    assert lefts == set(range(33))
    assert 150 < sum(flipped) < 250


def test_without_random_parts_every_epoch_is_the_same():
    source = Images(photo((100, 50)))
    images = training(source, center_crop=True, random_flip=False)
    first, second = (images[at(epoch, 7 * epoch, 0)]["pixels"] for epoch in (0, 1))
    assert torch.equal(first, second)
    mirrored = training(Images(ImageOps.mirror(photo((100, 50)))), center_crop=True, random_flip=False)
    assert torch.allclose(mirrored[at(0, 0, 0)]["pixels"].flip(-1).int(), first.int(), atol=2)


# --- loader processes --------------------------------------------------------------------------------


def batches(images, workers, count=4):
    order = [[at(0, 2 * number, 0), at(0, 2 * number + 1, 1)] for number in range(count)]
    return DataLoader(images, batch_sampler=order, collate_fn=list, num_workers=workers)


def test_loader_processes_change_nothing(tmp_path):
    images = training(open_source(info_of(parquet_folder(tmp_path / "a", 2)), tmp_path / "cache"))
    alone, helped = (list(batches(images, workers)) for workers in (0, 2))
    assert len(alone) == 4 and alone[0][1]["pixels"].shape == (3, 32, 32)
    assert [example["caption"] for example in helped[1]] == ["caption 0", "caption 1"]
    assert [example["sample"] for example in helped[1]] == [at(0, 2, 0), at(0, 3, 1)]
    for one, other in zip(chain(*alone), chain(*helped), strict=True):
        assert torch.equal(one["pixels"], other["pixels"])


def error_of(loader) -> JobError:
    """Without its traceback, whose frames would keep the loader's processes alive."""
    try:
        list(loader)
    except JobError as error:
        return error.with_traceback(None)
    raise AssertionError("no image was refused")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_named_through_loader_processes(tmp_path, workers):
    folder = metadata_folder(tmp_path / "a: b", 2)
    bad = folder / "sub/01 ü.png"
    bad.write_bytes(b"no image")
    error = error_of(batches(training(open_source(info_of(folder), None)), workers))
    assert error.code == 66
    (problem,) = error.problems
    assert str(problem).startswith(f"{bad}: is not an image") and "\n    → Replace this" in str(problem)
    assert "Traceback" not in str(error)


def test_errors_survive_copies_and_pickles():
    problems = [bad_input("b", "found", "fix"), bad_input("a", "found: more", "fix")]
    for error in (JobError(problems), JobError(problems[0]), SampleError(problems[1])):
        for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(twin) is type(error) and twin.problems == error.problems and str(twin) == str(error)
    text = f"Caught SampleError in a worker.\nTraceback …\nsdtrain.data.SampleError: {problems[1]}"
    assert SampleError(text).problems == (problems[1],)
