"""Input that is made to break a reader: one problem with its documented code, soon, and never an exception."""

import os
import time
from pathlib import Path

import pytest

from sdjob.redact import redact
from sdlaunch.display import text as display
from tests.support.launcher import found, prepare

DEEP = "[" * 50_000
NESTED = '{"a":' * 50_000


def written(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


@pytest.fixture(autouse=True)
def soon():
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 30


CONFIGS = {
    "nested": ("CONFIG_FILE", f"lr: {DEEP}"),
    "a zero byte": ("instance_prompt", 'instance_prompt: "a\\0b"'),
    "a zero byte in a list": ("validation_prompts", 'validation_prompts: ["a\\0b"]'),
    "too long for a command": ("instance_prompt", f"instance_prompt: {'x' * 200_000}"),
}
VARIABLES = {
    "a device": ("CONFIG_FILE", "/dev/zero"),
    "a device as env file": ("ENV_FILE", "/dev/full"),
    "a folder": ("ENV_FILE", "/"),
    "a zero byte in JSON": ("validation_prompts", '["a\\u0000b"]'),
    "half a surrogate pair in JSON": ("validation_prompts", '["\\ud800"]'),
    "nested JSON": ("validation_prompts", DEEP),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_config_file(workspace, tmp_path, what):
    subject, text = CONFIGS[what]
    path = written(tmp_path / "config.yaml", text)
    assert found(prepare(workspace, CONFIG_FILE=path)) == [(subject, 64)]


@pytest.mark.parametrize("what", VARIABLES)
def test_a_variable(workspace, what):
    name, value = VARIABLES[what]
    assert found(prepare(workspace, **{name: value})) == [(name, 64)]


def test_an_env_file_of_zero_bytes(workspace, tmp_path):
    path = written(tmp_path / "job.env", "lr=1\0")
    assert found(prepare(workspace, ENV_FILE=path)) == [("ENV_FILE", 64)]


def test_a_pipe_of_settings_is_read_as_a_file_and_not_waited_for(workspace, tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    os.write(writer, b"lr=0.25")
    assert found(prepare(workspace, ENV_FILE=str(path))) == [("ENV_FILE", 64)]  # the writer never ends
    os.close(writer)
    assert prepare(workspace, ENV_FILE=str(path)).settings["lr"].source == "default"  # it has ended before


def test_the_output_of_a_program_as_env_file(workspace):
    read, write = os.pipe()
    os.write(write, b"lr=0.25\n")
    os.close(write)
    assert prepare(workspace, ENV_FILE=f"/proc/self/fd/{read}").settings["lr"].value == 0.25
    os.close(read)


FILES = {
    "model/tiny/model_index.json": NESTED,
    "model/tiny/unet/config.json": NESTED,
    "model/tiny/tokenizer/tokenizer.json": NESTED,
    "model/tiny/tokenizer/vocab.json": NESTED,
    "model/tiny/scheduler/scheduler_config.json": DEEP,
}


@pytest.mark.parametrize("name", ["model", "dataset", "output"])
def test_a_mount_that_is_a_link_to_itself(workspace, tmp_path, name):
    path = tmp_path / name
    if path.exists():
        path.rename(tmp_path / "moved")
    path.symlink_to(path)
    (subject, code), *_ = found(prepare(workspace))
    assert (subject, code) in ((str(path), 66), ("OUTPUT_DIR", 73))


@pytest.mark.parametrize("name", ["model_name", "dataset_name", "script"])
def test_a_login_in_a_url_that_is_taken_for_a_path(workspace, name):
    job = prepare(workspace, **{name: "https://me:s3cr3t@host/x"})
    texts = [
        redact(text, ()) for text in (display.plan(job), display.plan_json(job), *map(str, job.problems))
    ]
    assert not [text for text in texts if "s3cr3t" in text]


def test_thousands_of_variables_that_resemble_settings(workspace):
    """As of the services of a Kubernetes cluster."""
    assert found(prepare(workspace, **{f"TRAIN_STEPX_{number}": "x" for number in range(5000)})) == []


@pytest.mark.parametrize("name", FILES)
def test_a_model_of_nested_json(workspace, tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    assert {code for _, code in found(prepare(workspace))} == {66}


@pytest.mark.parametrize("name", FILES)
def test_a_model_of_pipes_and_devices(workspace, tmp_path, name):
    path = tmp_path / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert {code for _, code in found(prepare(workspace))} == {66}
    path.unlink()
    path.symlink_to("/dev/zero")
    assert {code for _, code in found(prepare(workspace))} == {66}


def test_a_header_of_nested_json(workspace, tmp_path):
    header = NESTED.encode()
    path = next((tmp_path / "model/tiny/unet").glob("*.safetensors"))
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert {code for _, code in found(prepare(workspace))} == {66}


@pytest.mark.parametrize("text", [DEEP, "!!timestamp x", "? [a]\n: b", "- &a [*a]"])
def test_a_list_of_concepts(workspace, tmp_path, text):
    path = written(tmp_path / "concepts.yaml", text)
    assert {code for _, code in found(prepare(workspace, concepts_list=path))} == {66}


@pytest.mark.parametrize("name", ["SM_HOSTS", "TF_CONFIG", "CLUSTER_SPEC"])
def test_variables_of_platforms(workspace, name):
    assert found(prepare(workspace, **{name: DEEP})) == []


@pytest.mark.parametrize("text", ["(" * 5000, "-" * 200_000 + "1", "x = " + "a." * 100_000 + "b"])
def test_a_script(workspace, tmp_path, text):
    path = written(tmp_path / "train.py", text)
    assert found(prepare(workspace, script=path)) == [("script", 66)]


@pytest.mark.parametrize(
    "name", ["run/starts.json", "report.json", "run/lock-0", "run/lock-1", "run/failure-0.json"]
)
@pytest.mark.parametrize("content", [NESTED, "null", "[1]", '{"a": NaN}', None])
def test_records_of_an_earlier_start(workspace, tmp_path, name, content):
    path = tmp_path / "output" / name
    path.parent.mkdir(parents=True)
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(content)
    assert {code for _, code in found(prepare(workspace))} <= {73}
