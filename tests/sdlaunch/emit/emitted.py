"""Jobs to emit, and what reads the result where it is used: a shell, a stub of a program, a linter."""

import json
import subprocess
import sys
from pathlib import Path

from tests.sdlaunch.workspace import clean_environment, launch

AWKWARD = 'it\'s a "sks" dog\n$(touch pwned) `touch pwned` ${HOME} $HOME $$ \\ %s: # ünï'
MOUNTS = {"MODEL_DIR": "/a b/model", "DATASET_DIR": "/data,set", "OUTPUT_DIR": "/out$put"}
SETTINGS = {**MOUNTS, "instance_prompt": AWKWARD, "lr": "1e-4", "resolution": "512", "NPROC_PER_NODE": "2"}
ENV = {"NPROC_PER_NODE": "2", "instance_prompt": AWKWARD, "lr": "1e-4"}
NODES = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node-0", "MASTER_PORT": "1234"}
NUMBERED = {"NNODES": "2"}  # is enough where the platform says the rest
STUB = "#!/usr/bin/env python3\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], dict(os.environ)]))\n"


def emit(*arguments, **variables):
    done = launch("emit", *arguments, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def run_with_stub(program, text, folder):
    """(arguments, environment) that a program of this name is given when bash runs the text."""
    stub = folder / program
    stub.write_text(STUB)
    stub.chmod(0o755)
    environ = clean_environment()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    done = subprocess.run(
        ["bash"],
        input=text,
        env={**environ, "PATH": f"{folder}:{environ['PATH']}"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not list(folder.rglob("pwned"))
    return json.loads(done.stdout)


def undollared(text):
    assert "$" not in text.replace("$$", "")
    return text.replace("$$", "$")


def shellcheck(text: str) -> str:
    """What the linter says of a bash text; that nothing is expanded within single quotes is meant."""
    linter = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [linter, "--shell=bash", "--exclude=SC2016", "-"], input=text, capture_output=True, text=True
    )
    return done.stdout + done.stderr
