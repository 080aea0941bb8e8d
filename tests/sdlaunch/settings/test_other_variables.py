"""Variables that are not settings: which are known, and whose values are recorded."""

import pytest

from sdlaunch.settings.other_variables import is_foreign, is_recorded


@pytest.mark.parametrize(
    ("name", "foreign", "recorded"),
    [
        ("NCCL_DEBUG", True, True),
        ("PATH", True, True),
        ("SLURM_NNODES", True, True),
        ("HF_HUB_OFFLINE", True, True),
        ("HF_TOKEN", True, False),
        ("SLURM_JWT", True, False),  # a secret of a platform
        ("AWS_REGION", True, False),
        ("MLFLOW_TRACKING_URI", True, False),
        ("TF_CONFIG", True, False),
        ("bacth_size", False, False),
    ],
)
def test_which_are_known_and_whose_values_are_recorded(name, foreign, recorded):
    assert (is_foreign(name), is_recorded(name)) == (foreign, recorded)
