"""Secrets of every channel in one run: none of them is shown or written, and the processes get all of them."""

import json
import stat
from pathlib import Path

import pytest

from tests.sdlaunch.workspace import launch

VARIABLES = {
    "HF_TOKEN": "one-hub-token",
    "WANDB_API_KEY": "two-api-key",
    "AWS_SECRET_ACCESS_KEY": "three/secret+access",
    "DB_PASSWORD": "four pass'word",
    "PROXY_AUTH": "five-auth",
    "SESSION_JWT": "six-jwt",
    "SLACK_WEBHOOK_URL": "https://hooks.example/seven-hook",
    "SITE_COOKIE": "eight-cookie",
    "https_proxy": "http://nine-user:nine-pass@proxy:3128",
    "DATA_URL": "https://s3.example/x?X-Amz-Signature=ten-signature&sig=eleven-sig&token=twelve-token",
    "SLURM_JWT": "thirteen-jwt",
    "NCCL_PRIVATE_KEY": "fourteen-key",
    "UNKNOWN_TO_US": "fifteen-unknown",
}
IN_FILE = {"EXTRA_TOKEN": "sixteen-in-file", "CLIENT_CREDENTIAL": "seventeen-in-file"}
ARGUMENTS = "--hub_token eighteen-arg --api-key=nineteen-arg password=twenty-arg --auth pw21"
# What the script finds elsewhere and prints; its form gives it away.
FOUND = "Authorization: Bearer twentytwo.bearer  hf_twentythree0123456789 eyJhbGciOiJIUzI1NiJ9.eyJ0d2VudHlmb3VyIn0.x"
SECRETS = [
    *(
        "one-hub",
        "two-api",
        "three/secret",
        "four pass",
        "five-auth",
        "six-jwt",
        "seven-hook",
        "eight-cookie",
    ),
    *(
        "nine-user",
        "nine-pass",
        "ten-signature",
        "eleven-sig",
        "twelve-token",
        "thirteen-jwt",
        "fourteen-key",
    ),
    *(
        "fifteen-unknown",
        "sixteen-in-file",
        "seventeen-in-file",
        "eighteen-arg",
        "nineteen-arg",
        "twenty-arg",
        "pw21",
    ),
    *("twentytwo", "twentythree", "eyJ0d2VudHlmb3Vy"),
]
SCRIPT = f"""
import json, os, sys
names = {[*VARIABLES, *IN_FILE]}
with open({{got!r}}, "w") as file:
    json.dump([sys.argv[1:], {{{{name: os.environ[name] for name in names}}}}], file)
for name in names:
    if name != "UNKNOWN_TO_US":
        print(name, os.environ[name], flush=True)
print(sys.argv, {FOUND!r}, end="", flush=True)
os.write(2, b" last words with " + os.environ["HF_TOKEN"].encode())
raise RuntimeError(f"failed with {{{{os.environ['HF_TOKEN']}}}} and {{{{sys.argv[2]}}}}")
"""


@pytest.fixture
def variables(workspace, tmp_path):
    script, env_file = tmp_path / "mine.py", tmp_path / "job.env"
    script.write_text(SCRIPT.format(got=str(tmp_path / "got.json")))
    env_file.write_text("".join(f"{name}={value}\n" for name, value in IN_FILE.items()))
    own = {"script": str(script), "script_args": ARGUMENTS, "ENV_FILE": str(env_file)}
    return {**workspace, **VARIABLES, **own}


def left(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def test_a_run_shows_and_writes_no_secret_and_its_processes_get_them_all(variables, tmp_path):
    done = launch(**variables)
    assert done.returncode == 70, done.stdout + done.stderr
    assert "last words" in done.stdout
    assert left(done.stdout + done.stderr) == []
    written = [path for path in (tmp_path / "output").rglob("*") if path.is_file()]
    assert {"rank-0.log", "node-0.log", "plan.json", "spec.yaml", "environment.json", "failure.json"} <= {
        path.name for path in written
    }
    assert {path.name: found for path in written if (found := left(path.read_text()))} == {}
    words, environ = json.loads((tmp_path / "got.json").read_text())
    assert words == ARGUMENTS.split()
    assert environ == VARIABLES | IN_FILE
    private = {path.name for path in written if stat.S_IMODE(path.stat().st_mode) == 0o600}
    assert private >= {
        "rank-0.log",
        "node-0.log",
        "plan.json",
        "spec.yaml",
        "environment.json",
        "failure.json",
    }


@pytest.mark.parametrize(
    "verb", ["plan", "plan --json", "check", "emit docker", "emit slurm", "emit kubernetes"]
)
def test_what_is_printed_before_a_run_shows_none(variables, verb):
    done = launch(*verb.split(), **variables)
    assert done.returncode == 0, done.stderr
    assert left(done.stdout + done.stderr) == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--api_key", "one-hub"], ""),  # not a setting
        ([], "HF_TOKEN one-hub"),  # not NAME=value
        ([], 'HF_TOKEN="one-hub"'),  # which python-dotenv reads differently
    ],
)
def test_a_mistake_shows_none(workspace, tmp_path, words, line):
    file: Path = tmp_path / "job.env"
    file.write_text(line + "\n")
    done = launch("check", *words, **workspace, ENV_FILE=str(file))
    assert left(done.stdout + done.stderr) == []


def test_what_was_written_without_its_secrets_is_refused(variables, tmp_path):
    done = launch("check", **variables | {"script_args": "--hub_token [redacted]"})
    assert done.returncode == 64
    assert "script_args: [redacted] stands in place of a secret" in done.stdout
