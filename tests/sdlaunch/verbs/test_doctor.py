"""`doctor`: its questions to torch, its report of the answers, and its exit code."""

import json
import os
import sys

import pytest

from sdjob.problems import no_hardware
from sdlaunch import packages
from sdlaunch.cluster.devices import Devices
from sdlaunch.verbs import doctor

ANSWERS = {
    "torch": {"version": "2.13.0", "cuda": ""},
    "device": "cpu",
    "devices": {
        "cuda": {"available": False, "why": "none"},
        "npu": {"available": True, "why": "", "each": ["Ascend, 64 GiB"], "bf16": True},
        "cpu": {"available": True, "why": ""},
    },
    "distributed": {"gloo": "", "nccl": "not built"},
    "attention": {"sdpa": "", "flash": "no kernel"},
    "compiling and optional packages": {"C compiler": "", "bitsandbytes": "not installed"},
    "plugins": {"torch_ddp": "", "gemini": "needs a device of type cuda"},
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project whose worker answers with ANSWERS, through the same call as the real worker."""
    package = tmp_path / "project" / "sdtrain" / "tools"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "doctor.py").write_text(f"print({json.dumps(json.dumps(ANSWERS))})")
    (tmp_path / "docker").mkdir()
    found = Devices("cpu", 2, 2, "auto: no accelerator found", warnings=("GPU 1: GPU is lost",))
    monkeypatch.setattr("sdlaunch.cluster.devices.find", lambda *_: found)
    monkeypatch.setattr(packages, "broken", lambda *_: [])  # imports all of them, which takes seconds
    return tmp_path


def pin(home, text):
    (home / "docker/requirements.txt").write_text(text)


def test_what_works_and_what_does_not_is_listed_with_the_reason(home):
    import pydantic

    pin(home, f"pydantic=={pydantic.VERSION}\n")
    diagnosis = doctor.examine(home, os.environ)
    assert (diagnosis.code, diagnosis.problems) == (0, ())
    assert "\nDevices (+ can be used, - cannot)\n" in doctor.render(diagnosis)
    lines = [line.split() for line in doctor.render(diagnosis).splitlines()]
    assert ["+", "npu", "Ascend,", "64", "GiB;", "computes", "in", "bf16"] in lines
    assert ["-", "cuda", "none"] in lines
    assert ["cuda", "none"] in lines  # the version of CUDA that PyTorch is built with
    assert ["-", "nccl", "not", "built"] in lines and ["+", "gloo"] in lines
    assert ["-", "flash", "no", "kernel"] in lines
    assert ["Versions:", "1", "of", "1", "as", "proven"] in lines
    assert json.loads(diagnosis.to_json())["attention"] == ANSWERS["attention"]


def test_a_package_that_is_missing_or_of_another_version(home):
    pin(home, "# a remark\nno-such-package==1.5\npydantic==0.1\n")
    diagnosis = doctor.examine(home, os.environ)
    assert diagnosis.code == 69
    (problem,) = diagnosis.problems
    assert problem.found == f"no-such-package not installed for {sys.executable}"
    assert problem.remedy == f"Install: {sys.executable} -m pip install no-such-package==1.5"
    assert "Versions: 0 of 2 as proven" in doctor.render(diagnosis)
    assert "proven with 0.1" in doctor.render(diagnosis)


def test_a_torch_that_does_not_start_is_quoted(home):
    (home / "project/sdtrain/tools/doctor.py").write_text(
        "import sys; sys.exit('libcudart.so.12: cannot open')"
    )
    diagnosis = doctor.examine(home, os.environ)
    assert diagnosis.code == 69
    assert [problem.found for problem in diagnosis.problems] == ["libcudart.so.12: cannot open"]
    assert "1 problem; exit code 69" in doctor.render(diagnosis)


def test_a_folder_of_temporary_files_that_fails_is_named(home):
    environ = {**os.environ, "TMPDIR": "/nonexistent"}
    assert "TMPDIR: /nonexistent does not exist" in doctor.render(doctor.examine(home, environ))


def test_a_broken_package_is_named_instead_of_what_follows_from_it(home, monkeypatch):
    (home / "project/sdtrain/tools/doctor.py").write_text("import sys; sys.exit('undefined symbol')")
    problem = no_hardware(
        "Python packages", "torch is installed, but cannot be imported (x)", "Install it again."
    )
    monkeypatch.setattr(packages, "broken", lambda *_: [problem])
    assert doctor.examine(home, os.environ).problems == (problem,)
