"""Uploads to S3: s3fs against moto's server, which `make test-s3` installs."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from sdjob.model.trainable import LORA_FILE
from sdlaunch.publish import publish
from tests.sdlaunch.workspace import clean_environment
from tests.support.worker import free_port

PYTHON = Path(__file__).parents[2] / ".venv-s3/bin/python"
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIA" + 16 * "X",
    "AWS_SECRET_ACCESS_KEY": "very-secret-key",
    "AWS_REGION": "us-east-1",
}

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="make test-s3 installs s3fs and moto's server")


@pytest.fixture(scope="module")
def server():
    """The address of a server with the bucket `models`."""
    port = free_port()
    argv = [PYTHON, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(port, process)
            urllib.request.urlopen(urllib.request.Request(f"{address}/models", method="PUT"))
            yield address
        finally:
            process.terminate()


def _wait(port: int, process: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail("moto's server does not start")


@pytest.fixture(autouse=True)
def with_s3fs(monkeypatch):
    """Processes that reach out are of the environment that has s3fs."""
    monkeypatch.setattr(sys, "executable", str(PYTHON))
    monkeypatch.setattr(publish.importlib.util, "find_spec", lambda name: name)


@pytest.fixture
def result(tmp_path):
    for name in (LORA_FILE, "webui/lora.safetensors", "checkpoint-000400/state.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def objects(server) -> dict[str, str]:
    """All objects of the bucket with their text."""
    code = (
        "import json, s3fs; fs = s3fs.S3FileSystem(); "
        "print(json.dumps({path: fs.cat(path).decode() for path in fs.find('models')}))"
    )
    words = [str(PYTHON), "-c", code]
    return json.loads(
        subprocess.run(words, env=environ(server, **KEYS), capture_output=True, check=True).stdout
    )


def environ(server, **more):
    return clean_environment(AWS_ENDPOINT_URL=server, **more)


def test_a_result_is_uploaded(server, result):
    lines = []
    upload = publish.upload_of(result, "s3://models/dog", "to")
    assert publish.run(upload, environ(server, **KEYS), lines.append) == 0, lines
    assert objects(server) == {f"models/dog/{name}": name for name in (LORA_FILE, "webui/lora.safetensors")}
    assert lines[-1] == "published: s3://models/dog"
    assert "very-secret-key" not in "".join(lines)


def test_a_bucket_that_is_not_there(server, result):
    lines = []
    code = publish.run(
        publish.upload_of(result, "s3://elsewhere/dog", "to"), environ(server, **KEYS), lines.append
    )
    assert (code, lines[-2].split(":")[0]) == (73, "not published (FileNotFoundError"), lines


def test_keys_are_asked_for_before_the_start(server):
    assert publish.findings("s3://models/dog", environ(server, **KEYS), has_script=False) == []
    without = environ(server, AWS_EC2_METADATA_DISABLED="true")
    (problem,) = publish.findings("s3://models/dog", without, has_script=False)
    assert problem.code == 64 and "Unable to locate credentials" in problem.found
