"""`bash train.sh export` from a finished run, as a user types it."""

from tests.sdlaunch.workspace import launch
from tests.support.worker import snapshot


def test_the_result_of_a_step_checkpoint(train, tmp_path):
    output = train(max_train_steps=2, checkpointing_steps=1, learning_rate=0.1)
    done = launch("export", "checkpoint=checkpoint-000002", OUTPUT_DIR=str(output), RANK="1", WORLD_SIZE="2")
    folder = output / "exports/checkpoint-000002"
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"exported {output}/checkpoint/checkpoint-000002 to {folder}"
    assert done.stderr == ""
    found, wanted = snapshot(folder / "unet"), snapshot(output / "checkpoint/unet")
    assert found == wanted
    done = launch("export", "checkpoint=checkpoint-000002", OUTPUT_DIR=str(output))
    assert done.returncode == 73 and f"{folder} exists and is not empty" in done.stderr
