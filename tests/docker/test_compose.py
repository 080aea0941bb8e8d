"""Tests of docker/compose.yaml: it matches the image and the launcher."""

import re
from pathlib import Path

import pytest
import yaml

from sdlaunch.settings.options import LaunchOptions

DOCKER = Path(__file__).resolve().parents[2] / "docker"
SERVICES = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]


@pytest.mark.parametrize("name", ["job", "job-gpu"])
def test_a_job_has_its_four_mounts_and_only_one_is_writable(name):
    mounts = [re.fullmatch(r"\$\{.*\}:(/[^:]+)(:ro)?", volume) for volume in SERVICES[name]["volumes"]]
    found = {match[1]: not match[2] for match in mounts if match}
    assert found == {"/mnt/model": False, "/mnt/dataset": False, "/mnt/project": False, "/output": True}


@pytest.mark.parametrize("name", ["job", "job-gpu"])
def test_a_job_is_given_longer_to_stop_than_it_takes(name):
    seconds = re.fullmatch(r"\$\{STOP_GRACE_PERIOD:-(\d+)s\}", SERVICES[name]["stop_grace_period"])
    assert seconds and int(seconds[1]) > LaunchOptions.model_fields["stop_grace"].default


def test_every_target_that_is_built_is_in_the_dockerfile():
    targets = {service["build"]["target"] for service in SERVICES.values()}
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", (DOCKER / "Dockerfile").read_text(), re.MULTILINE))
    assert targets == {"cpu", "cuda"} <= stages


def test_only_the_gpu_profile_requests_gpus():
    asking = {name for name, service in SERVICES.items() if "deploy" in service}
    assert asking == {"job-gpu"}
    assert SERVICES["job-gpu"]["profiles"] == ["gpu"]
