"""Settings of a run, for tests that are about a few of them."""

from sdjob.settings.run_spec import RunSpec


def spec(**values) -> RunSpec:
    return RunSpec(**{"pretrained_model_name_or_path": "m", "output_dir": "o", **values})
