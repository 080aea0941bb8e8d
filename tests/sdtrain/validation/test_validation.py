"""Samples of the validation prompts, divided among the ranks."""

from types import SimpleNamespace

import torch
from PIL import Image, ImageChops

from sdjob.model.pipeline import find_pipeline
from sdjob.output.layout import OutputLayout
from sdjob.settings.run_spec import RunSpec
from sdtrain.model import load
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
        world = SimpleNamespace(rank=rank, size=size)
        context = SimpleNamespace(stop=StopRequest(None), layout=OutputLayout(tmp_path))
        training = SimpleNamespace(spec=spec, world=world, parts=parts, context=context)
        assert validation._write_slice(training, tmp_path / name)
    for number in range(3):
        one, two = (Image.open(tmp_path / name / f"prompt{number:02d}-00.png") for name in ("one", "two"))
        assert max(high for _, high in ImageChops.difference(one, two).getextrema()) <= 1
