"""What a process of a run imports before its first step: only what it needs, since each package takes long."""

import json
import subprocess
import sys

from tests.support.worker import environment

LATER = """
import json, sys
import sdtrain.run
names = ("diffusers.pipelines.stable_diffusion", "tensorboard", "torch.utils.tensorboard", "pandas", "datasets")
print(json.dumps([name for name in names if name in sys.modules]))
"""


def test_pipelines_and_tensorboard_are_imported_when_they_are_used():
    done = subprocess.run(
        [sys.executable, "-c", LATER], env=environment(), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
