"""What the launcher reckons a checkpoint to take is what one takes."""

import pytest

from sdjob.model.pipeline import find_pipeline
from sdjob.settings.run_spec import RunSpec
from sdlaunch.preflight import disk_space

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
    reckoned = disk_space.sizes(spec, find_pipeline(eps_model, None, allow_pickle=False))
    folder = output / "checkpoint" / "checkpoint-000001"
    found = sum(path.stat().st_size for path in folder.rglob("*"))
    assert reckoned is not None
    # Beside the numbers, files hold names of tensors: much in so small a model, nothing in a real one.
    assert reckoned.checkpoint <= found <= 1.5 * reckoned.checkpoint
