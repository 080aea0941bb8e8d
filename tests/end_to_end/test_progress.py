"""A whole run on a terminal: the bar goes through the stages in order, and leaves what people read later."""

from tests.sdlaunch.workspace import clean_environment
from tests.support import forked, screen
from tests.support.launcher import ENTRYPOINT

STAGES = ["start", "import", "load", "class", "cache", "validate", "train", "save", "export"]
ONCE = ("start", "import", "load", "class", "cache", "train", "export")  # others come at several points


def test_the_bar_goes_through_the_stages_in_order(eps_model, instance, tmp_path):
    output = tmp_path / "output"
    environ = clean_environment(
        MODEL_DIR=str(eps_model),
        DATASET_DIR=str(instance),
        OUTPUT_DIR=str(output),
        TERM="xterm",
        device="cpu",
        resolution="32",
        with_prior_preservation="1",
        class_prompt="a shape",
        num_class_images="4",
        sample_batch_size="1",
        num_train_step="40",
        checkpointing_steps="20",
        validation_prompts='["a cross"]',
        num_inference_steps="2",
        dataloader_num_workers="0",
    )
    code, written = screen.of_program(ENTRYPOINT, 100, env=environ, preexec_fn=forked.launcher(environ))
    assert code == 0, written
    bars = [each for each in screen.frames(written) if "━" in each]
    stages = dict.fromkeys(each.split()[0] for each in bars)
    assert set(stages) <= {"check", *STAGES}
    once = [each for each in stages if each in ONCE]  # as far as they last long enough to be seen
    assert "train" in once and once == sorted(once, key=STAGES.index)
    assert max(map(len, bars)) < 100
    lines = screen.lines(written)
    assert not [line for line in lines if "━" in line or "eta" in line]
    saved = [f"saved {output}/checkpoint/checkpoint-{step:06d}" for step in (20, 40)]
    assert [line for line in lines if line.startswith("saved")] == saved
    assert lines[-3:] == ["finished: 40 steps", f"result: {output}/checkpoint; open {output}/report.html", ""]
    log = (output / "logs" / "node-0.log").read_text()
    assert "train   40/40  mean loss" in log and "\r" not in log
