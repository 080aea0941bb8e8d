"""What a process of a run imports before its first step: only what it needs, since each package takes long; and how."""

import json
import subprocess
import sys

from tests.support.worker import environment, flags

LATER = """
import json, sys
import sdtrain.run
names = ("diffusers.pipelines.stable_diffusion", "tensorboard", "torch.utils.tensorboard", "pandas", "datasets")
print(json.dumps([name for name in names if name in sys.modules]))
"""

COLLECTIONS = """
import gc, json, sys
from sdtrain.__main__ import main
from sdtrain.runtime import stop
during = []
gc.callbacks.append(lambda phase, _: during.append(phase) if "torch" in sys.modules else None)
def imported(**_):
    print()
    print(json.dumps({"collections": len(during), "collects": gc.isenabled(), "frozen": gc.get_freeze_count()}))
    sys.exit()
stop.watch = imported  # it comes after the imports
main(sys.argv[1:])
"""


def test_pipelines_and_tensorboard_are_imported_when_they_are_used():
    done = subprocess.run(
        [sys.executable, "-c", LATER], env=environment(), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


def test_the_garbage_collector_does_not_look_at_the_imported_packages():
    argv = flags(pretrained_model_name_or_path="model", train_data_dir="data", output_dir="output")
    done = subprocess.run(
        [sys.executable, "-c", COLLECTIONS, *argv],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["collections"] == 0
    assert seen["collects"]
    assert seen["frozen"] > 100_000
