"""Whole runs under strategies that shard: the tutorial's own command, and going on under another strategy."""

import json

from safetensors.torch import load_file

from sdjob.output import run_settings
from sdtrain.export import from_checkpoint
from tests.support import colossal, worker
from tests.support.worker import losses

UNET = "unet/diffusion_pytorch_model.safetensors"
# As in the tutorial of Colossal-AI's text-to-image example.
TUTORIAL = {
    "plugin": "gemini",
    "placement": "cuda",
    "mixed_precision": "fp16",
    "use_ema": True,
    "ema_decay": 0.5,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": True,
    "device": "cuda",
}
IMAGES = {"validation_prompts": ["a cross", "a circle", "a square"], "num_validation_images": 1}


def test_the_tutorials_command_and_going_on_under_another_strategy(inputs, tmp_path, eps_model):
    import sdtrain.run
    import sdtrain.strategies.colossalai  # noqa: F401  (once, before the forks)

    given = {**inputs, "output_dir": tmp_path / "output", "learning_rate": 1e-4}
    codes = worker.in_ranks(2, colossal.install, **given, **TUTORIAL, **IMAGES, max_train_steps=2)
    assert codes == [0, 0]
    output = tmp_path / "output"
    found, source = load_file(output / "checkpoint" / UNET), load_file(eps_model / UNET)
    assert {name: (t.shape, t.dtype) for name, t in found.items()} == {
        name: (t.shape, t.dtype) for name, t in source.items()
    }
    assert any((found[name] != source[name]).any() for name in found)
    # Three images over two ranks, before and after: no rank waits for another's forward pass.
    assert len(list((output / "samples").glob("step-*/prompt*.png"))) == 6
    assert (output / "checkpoint/checkpoint-000002/shards").is_dir()
    report = json.loads((output / "report.json").read_text())
    assert (report["plugin"], report["world_size"], report["global_batch_size"]) == ("gemini", 2, 8)
    assert report["attention_backend"] in ("flash", "math")
    # The shards of the last step give the same result, in one process without Colossal-AI's help.
    checkpoint = output / "checkpoint/checkpoint-000002"
    spec = run_settings.settings_of(checkpoint)
    from_checkpoint.write_result(checkpoint, tmp_path / "exported", spec, ema=True)
    exported = load_file(tmp_path / "exported" / UNET)
    assert all((exported[name] == weight).all() for name, weight in found.items())

    # Without an accelerator, under FSDP, on one process: the same course goes on from step 2.
    other = {**TUTORIAL, "plugin": "fsdp", "mixed_precision": "no", "device": "cpu", "train_batch_size": 2}
    assert worker.in_ranks(1, **given, **other, max_train_steps=3) == [0]
    report = json.loads((output / "report.json").read_text())
    assert (report["plugin"], report["resumed_from_step"], report["steps"]) == ("fsdp", 2, 3)
    assert len(losses(output)) == 3
