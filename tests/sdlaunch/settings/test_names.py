"""Tests of names: which names are known, whose the others are, and what they probably meant."""

import pytest

from sdjob.settings.run_spec import RunSpec
from sdlaunch.settings import names
from sdlaunch.settings.options import LaunchOptions


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("bacth_size", "batch_size"),  # neighbours swapped
        ("batch_siz", "batch_size"),
        ("batch_sizes", "batch_size"),
        ("bach_sise", "batch_size"),  # two edits of a long name
        ("bxtcy_size", "batch_size"),  # both to letters that it does not have
        ("train-text-encodxx", "train_text_encoder"),
        ("seeds", "seed"),
        ("NPROC_PERNODE", "NPROC_PER_NODE"),
        ("OUTPUT_DRI", "OUTPUT_DIR"),
        ("output-dirs", "OUTPUT_DIR"),
        ("plugins", "plugin"),
        ("resumed", "resume"),
        ("network_dim", "lora_rank"),  # of another trainer
    ],
)
def test_a_misspelled_name_has_a_near_miss(typed, meant):
    assert names.near_miss(typed) == meant


# SEAT is too short to tell.
OTHERS = "SEED2X SEAT RANKS CLUSTER IMAGE_NAME LOG_STEPS DEVICE_ID DATA_DIR DEBUG_LEVEL BATCH_JOB"


@pytest.mark.parametrize("name", OTHERS.split())
def test_a_name_of_something_else_has_none(name):
    assert names.near_miss(name) is None


def test_lookup_reads_lower_case_names_in_any_case_and_upper_case_names_exactly():
    assert names.lookup("LR").field == "learning_rate"
    assert names.lookup("model_dir") is None
    assert names.lookup("model_dir", any_case=True).shown == "MODEL_DIR"
    assert names.lookup("output_dir") is None  # a flag of the worker only


def test_flags_of_the_worker_have_a_mount():
    assert names.mount_of("INSTANCE_DATA_DIR") == "DATASET_DIR"


@pytest.mark.parametrize(
    ("model", "field", "shown", "others"),
    [
        (RunSpec, "learning_rate", "lr", {"learning_rate"}),
        (RunSpec, "train_batch_size", "batch_size", {"train_batch_size"}),
        (RunSpec, "seed", "seed", set()),
        (LaunchOptions, "nnodes", "NNODES", set()),  # upper-case names have no lower-case one
        (LaunchOptions, "hang_timeout", "hang_timeout", set()),
    ],
)
def test_every_name_of_a_setting_is_known(model, field, shown, others):
    names.catalogue.cache_clear()
    spellings = [shown, *names.other_names(model, field)]
    assert others <= set(spellings)
    assert field in spellings or shown.isupper()
    found = {name: target for name, target in names.catalogue().items() if target.field == field}
    assert list(found) == spellings
    assert {(target.model, target.shown) for target in found.values()} == {(model, shown)}
    assert [target.alias.name for target in found.values()] == spellings


def test_flags_of_the_worker_alone_are_not_names():
    names.catalogue.cache_clear()
    assert not {"instance_data_dir", "train_data_dir", "output_dir"} & names.catalogue().keys()
