"""`emit compose`, read as YAML and checked against the schema of Compose."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.sdlaunch.emit.emitted import ENV, MOUNTS, NODES, SETTINGS, emit, undollared
from tests.sdlaunch.workspace import HOME


def test_compose():
    service = yaml.safe_load(emit("compose", **SETTINGS))["services"]["sdjob"]
    assert {name: undollared(value) for name, value in service.pop("environment").items()} == ENV
    assert [(each["source"], each["target"], each["read_only"]) for each in service.pop("volumes")] == [
        ("/a b/model", "/mnt/model", True),
        ("/data,set", "/mnt/dataset", True),
        (str(HOME), "/mnt/project", True),
        ("/out$$put", "/output", False),
    ]
    device = {"driver": "nvidia", "count": 2, "capabilities": ["gpu"]}
    assert service == {
        "image": "sd-finetune:cuda",
        "user": "${RUN_AS:-10001}:0",
        "command": ["bash", "/mnt/project/train.sh"],
        "shm_size": "8g",
        "stop_grace_period": "35s",
        "deploy": {"resources": {"reservations": {"devices": [device]}}},
    }


@pytest.mark.parametrize("variables", [SETTINGS, SETTINGS | NODES, {**MOUNTS, "device": "cpu"}])
def test_the_compose_file_is_valid(variables, tmp_path):
    def complaints(text: str) -> str:
        file = tmp_path / "compose.yaml"
        file.write_text(text)
        checker = Path(sys.executable).with_name("check-jsonschema")
        command = [checker, "--builtin-schema", "vendor.compose-spec", file]
        done = subprocess.run(command, capture_output=True, text=True)
        return "" if done.returncode == 0 else done.stdout

    text = emit("compose", **variables)
    assert complaints(text) == ""
    assert "stop_grace_periodd" in complaints(text.replace("stop_grace_period", "stop_grace_periodd"))
