"""Class images: made once, only those that are missing, never where the user's own are."""

import dataclasses
import signal

import pytest
import torch
from PIL import Image

from sdjob.model.pipeline import find_pipeline
from sdjob.output.layout import OutputLayout
from sdjob.problems import JobError
from sdjob.settings.run_spec import RunSpec
from sdtrain.context import RunContext
from sdtrain.model import load
from sdtrain.recipes import class_images
from sdtrain.runtime.stop import Stopped, StopRequest
from tests.support.worker import alone, snapshot


@pytest.fixture(scope="module")
def parts(eps_model):
    source = find_pipeline(eps_model, None, allow_pickle=False)
    return load.load(source, "no", torch.device("cpu"), allow_pickle=False)


@pytest.fixture
def provide(parts, tmp_path):
    """provide(n, …): the folder with n class images."""
    layout = OutputLayout(tmp_path / "out")

    def run(count, *, world=None, stop=None, identity="model", **settings):
        spec = RunSpec(
            **{
                "pretrained_model_name_or_path": "m",
                "output_dir": str(layout.root),
                "class_prompt": "a cross",
                "num_class_images": count,
                "resolution": 32,
                "num_inference_steps": 1,
                **settings,
            }
        )
        context = RunContext(spec, world or alone(), layout, stop or StopRequest(None), first_step=4)
        return class_images.provide(context, parts, identity).path

    return run


def test_makes_as_many_as_asked_for_at_the_size_of_the_run(provide):
    folder = provide(3, sample_batch_size=2)
    assert sorted(path.name for path in folder.iterdir()) == ["000000.png", "000001.png", "000002.png"]
    assert {Image.open(path).size for path in folder.iterdir()} == {(32, 32)}
    assert len(set(snapshot(folder).values())) == 3  # each its own seed


def test_only_missing_ones_are_made(provide):
    folder = provide(3, sample_batch_size=2)
    made = snapshot(folder)
    (folder / "000000.png").write_bytes(b"kept as it is")
    (folder / "000001.png").unlink()
    assert provide(4, sample_batch_size=2) == folder
    again = snapshot(folder)
    assert again["000001.png"] == made["000001.png"]
    assert (folder / "000000.png").read_bytes() == b"kept as it is"
    assert len(again) == 4


@pytest.mark.parametrize(
    "change",
    [{"class_prompt": "a circle"}, {"resolution": 64}, {"seed": 1}, {"guidance_scale": 1}, {"identity": "x"}],
    ids=str,
)
def test_images_of_another_kind_have_another_folder(provide, change):
    assert provide(1) != provide(1, **change)


def test_ranks_share_the_work_and_make_the_same_set(provide, tmp_path):
    """Two ranks one after the other, as they are when no barrier makes them wait."""

    class Rank(type(alone())):
        def barrier(self): ...
        def any(self, flag):
            return flag

    made = []
    whole = snapshot(provide(5, sample_batch_size=2))
    for path in (tmp_path / "out/class_images").rglob("*.png"):
        path.unlink()
    first = dataclasses.replace(alone(), size=2)
    for rank in (0, 1):
        world = Rank(**{**first.__dict__, "rank": rank})
        before = set(snapshot(tmp_path / "out"))
        # The other rank has listed the folder before this one adds to it; so must this one have.
        folder = provide(5, sample_batch_size=2, world=world if rank == 0 else None)
        made.append(sorted(name[-10:] for name in set(snapshot(tmp_path / "out")) - before))
    assert made == [["000000.png", "000001.png", "000004.png"], ["000002.png", "000003.png"]]
    assert snapshot(folder) == whole


def test_a_stop_keeps_what_is_made(provide):
    stop = StopRequest(None)
    stop.signalled(signal.SIGTERM, None)
    with pytest.raises(Stopped) as stopped:
        provide(3, stop=stop)
    assert stopped.value.step == 4  # that the run would have gone on from
    folder = provide(3)
    assert len(snapshot(folder)) == 3


def test_given_images_are_only_read(provide, of_class, tmp_path):
    before = snapshot(of_class)
    assert provide(4, class_data_dir=str(of_class)) == of_class
    assert snapshot(of_class) == before
    assert not (tmp_path / "out").exists()


def test_too_few_given_images_are_66(provide, of_class):
    before = snapshot(of_class)
    with pytest.raises(JobError) as error:
        provide(5, class_data_dir=str(of_class))
    assert error.value.code == 66
    assert "4 images" in str(error.value)
    assert snapshot(of_class) == before
