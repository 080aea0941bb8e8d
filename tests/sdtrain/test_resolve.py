"""Settings become values: recognised inputs, precision, device, and steps."""

from dataclasses import replace

import pytest

from sdjob.output import fingerprint
from sdjob.problems import JobError
from sdjob.settings.run_spec import RunSpec
from sdtrain import resolve
from tests.support import checkpoints
from tests.support.worker import alone


def spec_of(inputs, **settings) -> RunSpec:
    paths = {name: str(path) for name, path in inputs.items()}
    return RunSpec(**{**paths, "output_dir": "o", "recipe": "text_to_image", **settings})


def test_each_recipe_has_its_own_datasets(inputs):
    found = resolve.find_inputs(spec_of(inputs))
    assert (len(found.concepts), [info.num_examples for info in found.datasets]) == (0, [6])
    found = resolve.find_inputs(spec_of(inputs, recipe="dreambooth", instance_prompt="a cross"))
    assert (len(found.concepts), [info.num_examples for info in found.datasets]) == (1, [3])


def test_the_problems_of_model_and_dataset_are_raised_together(inputs, tmp_path):
    wrong = {"pretrained_model_name_or_path": tmp_path / "no_model", "train_data_dir": tmp_path / "no_data"}
    with pytest.raises(JobError) as error:
        resolve.find_inputs(spec_of({**inputs, **wrong}))
    assert [problem.code for problem in error.value.problems] == [66, 66]
    assert "no_model" in str(error.value) and "no_data" in str(error.value)


def test_auto_becomes_what_the_device_computes_in(inputs):
    spec = resolve.resolve(spec_of(inputs), alone(), resolve.find_inputs(spec_of(inputs)))
    assert (spec.device, spec.mixed_precision, spec.max_train_steps) == (
        "cpu",
        "no",
        spec_of(inputs).max_train_steps,
    )


def test_epochs_count_what_is_left_after_a_checkpoint_in_todays_batches(inputs):
    """6 images: 3 epochs are 18 samples; after 5 of them by steps of 1, 13 are left, in steps of 4."""
    spec = spec_of(inputs, num_train_epochs=3, train_batch_size=4)
    found = resolve.find_inputs(spec)
    assert resolve.num_steps(spec, alone(), found) == 5
    state = replace(checkpoints.state(5), samples_seen=5)
    assert resolve.num_steps(spec, alone(), found, state) == 5 + 4
    given = spec_of(inputs, num_train_epochs=3, max_train_steps=7)
    assert resolve.num_steps(given, alone(), found, state) == 7  # a number of steps takes precedence


def test_settings_that_this_device_cannot_run_are_refused(inputs):
    spec = spec_of(inputs, mixed_precision="fp16")
    with pytest.raises(JobError) as error:
        resolve.resolve(spec, alone(), resolve.find_inputs(spec))
    assert (error.value.code, error.value.problems[0].subject) == (64, "mixed_precision")


def test_what_a_resume_compares_names_every_input(inputs):
    spec = spec_of(inputs)
    found = resolve.find_inputs(spec)

    def facts_of(inputs):
        return fingerprint.facts_of(
            spec, inputs.model.architecture, {"model_name": "identity"}, inputs.datasets, inputs.concepts
        )

    facts = facts_of(found)
    assert facts["model_name"].endswith("identity") and facts["recipe"] == "text_to_image"
    fewer = replace(found, datasets=(replace(found.datasets[0], num_examples=5),))
    assert facts["dataset_name"] != facts_of(fewer)["dataset_name"]
