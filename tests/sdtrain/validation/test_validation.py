"""Samples of the validation prompts, divided among the ranks; which validations are due, and which are complete."""

from types import SimpleNamespace

import torch
from PIL import Image, ImageChops

from sdjob.model.pipeline import find_pipeline
from sdjob.output.layout import OutputLayout
from sdjob.settings.run_spec import RunSpec
from sdtrain.model import load
from sdtrain.reporting.metrics import MetricsFile, StepMetrics
from sdtrain.runtime.stop import StopRequest
from sdtrain.validation import validation


def test_slices_of_the_ranks_together_are_the_whole(eps_model, tmp_path):
    source = find_pipeline(eps_model, None, allow_pickle=False)
    parts = load.load(source, "no", torch.device("cpu"), allow_pickle=False)
    spec = RunSpec(
        pretrained_model_name_or_path=str(eps_model),
        output_dir="o",
        validation_prompts=("a", "b", "c"),
        num_validation_images=1,
        resolution=32,
        num_inference_steps=2,
        sample_batch_size=2,
    )
    for rank, size, name in ((0, 2, "two"), (1, 2, "two"), (0, 1, "one")):
        world = SimpleNamespace(rank=rank, size=size, is_main=rank == 0)
        context = SimpleNamespace(stop=StopRequest(None), layout=OutputLayout(tmp_path))
        training = SimpleNamespace(spec=spec, world=world, parts=parts, context=context)
        assert validation._write_slice(training, tmp_path / name)
    for number in range(3):
        one, two = (Image.open(tmp_path / name / f"prompt{number:02d}-00.png") for name in ("one", "two"))
        assert max(high for _, high in ImageChops.difference(one, two).getextrema()) <= 1


def test_a_validation_is_complete_with_all_its_samples_and_its_loss(tmp_path):
    """A stop may fall between the two."""
    spec = RunSpec(
        pretrained_model_name_or_path="m", output_dir="o", validation_prompts=("a",), validation_steps=20
    )
    context = SimpleNamespace(layout=OutputLayout(tmp_path))
    training = SimpleNamespace(
        spec=spec,
        world=SimpleNamespace(from_main=lambda read: read()),
        context=context,
        held_out=[1],
        validates=True,
    )
    assert [step for step in (0, 10, 20, 380, 400) if validation.is_due(training, step)] == [20, 380]
    found = []
    folder = validation.samples_folder(context.layout, 20)
    folder.mkdir(parents=True)
    found.append(validation.is_complete(training, 20))
    (folder / "prompts.json").write_text('["a"]')
    found.append(validation.is_complete(training, 20))
    metrics = MetricsFile(context.layout.metrics, 0)
    metrics.log(StepMetrics(20, loss=1.0))
    found.append(validation.is_complete(training, 20))
    metrics.log(StepMetrics(20, validation_loss=1.0))
    found.append(validation.is_complete(training, 20))
    metrics.close()
    assert found == [False, False, False, True]
