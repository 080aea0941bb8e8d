"""The whole way of a user: `bash train.sh` from another folder, to a result that diffusers loads and draws with."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from sddemo.write_demo import write_demo
from tests.sdlaunch.workspace import HOME, clean_environment
from tests.support.launcher import found, prepare

SETTINGS = {
    "NPROC_PER_NODE": "2",
    "batch_size": "1",
    "lr": "1e-5",
    "num_train_step": "3",
    "plugin": "torch_ddp",
}
CASES = {
    "text_to_image": {"recipe": "text_to_image", "dataset_name": "dataset_captioned"},
    "dreambooth_lora": {"dataset_name": "dataset", "lora_rank": "2"},
}


@pytest.fixture(scope="module")
def mounts(tmp_path_factory):
    """The embedded pipeline and its drawings, in folders with a space in their names."""
    folder = tmp_path_factory.mktemp("my mounts")
    write_demo(folder, captioned=4)
    return folder


def drawn(pipeline: StableDiffusionPipeline) -> tuple[int, int]:
    pipeline.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(0)
    image = pipeline("a red circle", height=64, width=64, num_inference_steps=2, generator=seed).images[0]
    return tuple(image.size)


@pytest.mark.parametrize("case", CASES)
def test_from_the_start_command_to_a_image(case, mounts: Path, tmp_path: Path):
    output = tmp_path / "out put"
    workspace = {"MODEL_DIR": str(mounts / "model"), "DATASET_DIR": str(mounts), "OUTPUT_DIR": str(output)}
    more = {"resolution": "64", "dataloader_num_workers": "0", **CASES[case]}
    done = subprocess.run(
        ["bash", str(HOME / "train.sh")],
        env=clean_environment(**workspace, **SETTINGS, **more),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "= 2 images per step" in done.stdout
    report = json.loads((output / "report.json").read_text())
    assert (report["world_size"], report["steps"], report["global_batch_size"]) == (2, 3, 2)
    if "lora_rank" in more:
        pipeline = StableDiffusionPipeline.from_pretrained(mounts / "model", safety_checker=None)
        pipeline.load_lora_weights(str(output / "checkpoint"))
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(output / "checkpoint", safety_checker=None)
    assert drawn(pipeline) == (64, 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out put"]
    again = prepare(workspace, **SETTINGS, **more)
    assert (again.problems, again.arithmetic[-1]) == ((), "resume: already finished, at step 3")
    assert found(prepare(workspace, **SETTINGS, **more, seed="1")) == [("seed", 64)]
