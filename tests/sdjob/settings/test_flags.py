"""Tests of flags: a spec becomes flags and comes back the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdjob.problems import JobError
from sdjob.settings import flags
from sdjob.settings.run_spec import RunSpec

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1)
PATHS = {"pretrained_model_name_or_path": "/m", "output_dir": "/o"}
SPECS = st.builds(
    RunSpec,
    pretrained_model_name_or_path=TEXT,
    output_dir=TEXT,
    instance_data_dir=st.none() | TEXT,
    recipe=st.sampled_from(["dreambooth", "text_to_image"]),
    instance_prompt=TEXT,
    class_prompt=st.none() | TEXT,
    validation_prompts=st.lists(TEXT, max_size=3).map(tuple),
    lora_target_modules=st.sampled_from([("to_k",), ("to_q", "to_v")]),
    lora_alpha=st.none() | st.floats(0.01, 100),
    learning_rate=st.floats(1e-12, 1),
    seed=st.integers(0, 2**32 - 1),
    resolution=st.integers(4, 512).map(lambda n: 8 * n),
    use_ema=st.booleans(),
    checkpoints_total_limit=st.none() | st.integers(1, 9),
    plugin=st.sampled_from(["none", "torch_ddp"]),
    device=st.sampled_from(["auto", "cuda", "cpu"]),
)


@given(SPECS)
def test_there_and_back(spec):
    assert flags.parse(flags.render(spec)) == spec


def test_core_flags_are_spelled_out_at_their_default_and_others_are_not():
    rendered = flags.render(RunSpec(**PATHS))
    assert "--resolution=512" in rendered
    assert not any(flag.startswith("--adam_beta1") for flag in rendered)


@pytest.mark.parametrize(
    "flag", ["--learning_rte=1e-5", "--learn=1e-5", "stray", "--learning_rate", "--use_ema=perhaps"]
)
def test_flags_that_are_not_understood_are_a_wrong_setting(flag):
    with pytest.raises(JobError) as caught:
        flags.parse(["--pretrained_model_name_or_path=/m", "--output_dir=/o", flag])
    assert caught.value.code == 64


def test_every_wrong_value_is_named_as_users_type_it():
    with pytest.raises(JobError) as caught:
        flags.parse(["--learning_rate=-1", "--train_batch_size=x", "--output_dir=/o"])
    assert {problem.subject for problem in caught.value.problems} == {
        "lr",
        "batch_size",
        "pretrained_model_name_or_path",
    }


def test_help_shows_every_flag(capsys):
    with pytest.raises(SystemExit):
        flags.parse(["--help"])
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in RunSpec.model_fields)
