"""The estimated size of a checkpoint is the size of a real one."""

import pytest

from sdjob.model.memory_estimate import output_sizes
from sdjob.model.pipeline import find_pipeline
from sdjob.settings.run_spec import RunSpec

WITH_TEXT = {"train_text_encoder": True}
CASES = {
    "ema": {"use_ema": True},
    "prodigy": {"optimizer": "prodigy", "learning_rate": 1.0},
    "text encoder": WITH_TEXT,
    "lora": {"lora_rank": 16},
    "lora of both": {"lora_rank": 16, **WITH_TEXT},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_the_size_of_a_checkpoint(train, eps_model, settings):
    output = train(max_train_steps=1, **settings)
    spec = RunSpec(pretrained_model_name_or_path="m", output_dir="o", **settings)
    estimated = output_sizes(spec, find_pipeline(eps_model, None, allow_pickle=False))
    folder = output / "checkpoint" / "checkpoint-000001"
    found = sum(path.stat().st_size for path in folder.rglob("*"))
    assert estimated is not None
    # Files also hold the names of tensors: much in so small a model, nothing in a real one.
    assert estimated.checkpoint <= found <= 1.5 * estimated.checkpoint
