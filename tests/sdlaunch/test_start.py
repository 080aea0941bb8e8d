"""The launcher's start, where even its packages may be missing.

Tests of entrypoint.py and `sdlaunch/display/console.py`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import entrypoint
from sdjob import protocol
from sdlaunch import packages
from sdlaunch.display import console
from sdlaunch.verbs import doctor
from tests.sdlaunch.workspace import HOME, clean_environment, launch


def started(folder: Path, module: str, source: str) -> subprocess.CompletedProcess[str]:
    """The launcher, with a module of that source before the installed one."""
    (folder / f"{module}.py").write_text(source)
    environ = {**os.environ, "PYTHONPATH": str(folder), "ENV_FILE": str(HOME / "env/demo.env")}
    command = [sys.executable, str(HOME / "entrypoint.py"), "check"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize(("module", "package"), [("dotenv", "python-dotenv"), ("pydantic", "pydantic")])
def test_a_missing_package_is_named_as_pip_knows_it(tmp_path, module, package):
    ended = started(tmp_path, module, f"raise ModuleNotFoundError('No module', name={module!r})")
    assert ended.returncode == 69
    version = packages.pinned_versions("")[package]
    assert ended.stderr == (
        f"Python packages: {package} not installed for {sys.executable}\n"
        f"    → Install: {sys.executable} -m pip install {package}=={version}\n"
    )


def test_all_missing_packages_are_named_at_once(monkeypatch, capsys):
    def main() -> int:
        raise ModuleNotFoundError("No module named 'psutil'", name="psutil")

    here = packages.find_spec
    lacking = ("psutil", "PIL", "yaml")
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name in lacking else here(name))
    assert console.guarded(main) == 69
    said = capsys.readouterr().err
    assert said.startswith("Python packages: pillow, psutil, pyyaml not installed for")
    pins = packages.pinned_versions("")
    assert said.endswith(" ".join(f"{name}=={pins[name]}" for name in ("pillow", "psutil", "pyyaml")) + "\n")


def test_a_bug_of_the_launcher_is_one_line_with_its_position(tmp_path):
    ended = started(tmp_path, "pydantic", "raise RuntimeError('broken')")
    assert ended.returncode == 70
    assert ended.stderr.startswith("launcher: RuntimeError: broken (pydantic.py:1)\n    → This is a bug")
    assert "Traceback" not in ended.stderr


def test_text_is_utf8_whatever_the_locale_of_the_image_is(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PYTHONUTF8"\n')
    python.chmod(0o755)
    environ = {**os.environ, "LAUNCHER_PYTHON": str(python), "LC_ALL": "de_DE.ISO-8859-1"}
    ended = subprocess.run(["bash", HOME / "train.sh"], env=environ, capture_output=True, text=True)
    assert ended.stdout == "1\n"


def train_sh(
    folder: Path, text: str = "", *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A copy of train.sh, of this project or with another text."""
    script = folder / "train.sh"
    script.write_text(text or (HOME / "train.sh").read_text(), newline="")
    return subprocess.run(
        ["bash", str(script), *arguments],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
    )


def test_a_checkout_of_windows_is_named(tmp_path):
    text = (HOME / "train.sh").read_text().replace("\n", "\r\n")
    done = train_sh(tmp_path, text)
    assert (done.returncode, done.stdout) == (66, "")
    assert done.stderr == (
        f"{tmp_path}/train.sh: has line ends of Windows (CRLF)\n"
        f"    → Convert it: sed -i 's/\\r$//' '{tmp_path}/train.sh'\n"
    )


def test_git_checks_out_with_the_line_ends_of_linux():
    assert "* text=auto eol=lf" in (HOME / ".gitattributes").read_text()


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("PYTHONHOME", "/nonexistent", "init_fs_encoding"),
        ("PYTHONHASHSEED", "x", "PYTHONHASHSEED must be"),
        ("PYTHONIOENCODING", "no-such-encoding", "init_stdio_encoding"),
    ],
)
def test_a_python_that_does_not_start_is_69_with_its_reason(tmp_path, variable, value, why):
    done = train_sh(tmp_path, LAUNCHER_PYTHON=sys.executable, **{variable: value})
    assert done.returncode == 69
    what, remedy = done.stderr.splitlines()
    assert what.startswith(f"Python: {sys.executable} does not start: ")
    assert why in what
    assert remedy == (
        f"    → Set LAUNCHER_PYTHON to a Python that starts, or unset the variable at fault: {variable}."
    )


def test_a_python_of_another_machine_is_69(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/nonexistent/loader\n")
    python.chmod(0o755)
    done = train_sh(tmp_path, LAUNCHER_PYTHON=str(python))
    assert done.returncode == 69
    assert "does not start" in done.stderr
    assert done.stderr.endswith("    → Set LAUNCHER_PYTHON to a Python that starts.\n")


def test_a_deleted_working_folder_does_no_harm(workspace, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"rmdir {gone}; exec bash {HOME / 'train.sh'} check model_name=relative"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=gone,
        env=clean_environment(**workspace),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 66, done.stdout + done.stderr
    assert "relative" in done.stdout


@pytest.mark.parametrize(
    ("closed", "code"), [(">&-", 0), ("2>&-", 0), ("<&-", 0), ("<&- >&- 2>&-", 0), ("<&- >&- 2>&-", 64)]
)
def test_closed_streams_change_no_code(workspace, closed, code):
    script = f"bash {HOME / 'train.sh'} check {'lr=x' if code else ''} {closed}"
    done = subprocess.run(["bash", "-c", script], env=clean_environment(**workspace), capture_output=True)
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    ("umask", "then"), [("777", "0o77"), ("022", "0o22"), ("000", "0o0"), ("077", "0o77")]
)
def test_no_umask_locks_the_user_out(umask, then):
    script = "import os; from sdlaunch.display import console; console.prepare(); print(oct(os.umask(0)))"
    done = subprocess.run(
        ["bash", "-c", f"umask {umask}; exec {sys.executable} -c '{script}'"],
        env=clean_environment(PYTHONPATH=str(HOME / "project")),
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{then}\n", done.stderr


def test_warnings_that_are_errors_do_not_end_the_launcher(tmp_path):
    source = (
        "import warnings\nwarnings.warn('old', DeprecationWarning)\nraise ModuleNotFoundError('', name='x')"
    )
    (tmp_path / "pydantic.py").write_text(source)
    environ = clean_environment(PYTHONPATH=str(tmp_path), PYTHONWARNINGS="error")
    done = subprocess.run(
        [sys.executable, str(HOME / "entrypoint.py"), "plan"], env=environ, capture_output=True, text=True
    )
    assert done.stderr.startswith("Python packages: x not installed")


VERBS = [
    (["--help"], 0),
    (["plan"], 0),
    (["check", "--json"], 0),
    (["emit", "docker"], 0),
    (["emit", "slurm"], 0),
]


@pytest.mark.parametrize(
    ("argv", "code"),
    [*VERBS, (["doctor"], 0), (["lr=x"], 64), (["plan", "lr=x"], 64), (["emit", "docker", "lr=x"], 64)],
)
def test_a_reader_that_has_gone_is_not_an_error(workspace, monkeypatch, argv, code):
    """As in `plan | head`: what was not read is lost, and the exit code stands."""
    monkeypatch.setattr(doctor, "examine", lambda *_: doctor.Diagnosis({}, ()))
    monkeypatch.setattr(doctor, "render", str)
    for name in ("stdout", "stderr"):
        reading, writing = os.pipe()
        os.close(reading)
        monkeypatch.setattr(sys, name, os.fdopen(writing, "w"))
    assert entrypoint.main(argv, clean_environment(**workspace)) == code
    sys.stdout.close()  # flushes
    sys.stderr.close()


def test_it_works_from_any_working_directory_and_through_a_link(workspace, tmp_path):
    link = tmp_path / "with space"
    link.symlink_to(HOME)
    done = subprocess.run(
        ["bash", "../with space/train.sh", "check"],
        cwd=tmp_path / "model",
        env=clean_environment(**workspace),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_without_python_the_code_is_69(tmp_path):
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "readlink"):
        (tmp_path / "bin" / tool).symlink_to(f"/usr/bin/{tool}")
    (tmp_path / "train.sh").write_text((HOME / "train.sh").read_text())
    done = subprocess.run(
        [str(tmp_path / "bin" / "bash"), str(tmp_path / "train.sh")],
        env={"PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 69
    assert "Python" in done.stderr


def test_without_pydantic_the_code_is_69(workspace):
    script = (
        f"import sys; sys.modules['pydantic'] = None; sys.path.insert(0, {str(HOME)!r}); "
        "import entrypoint; sys.exit(entrypoint.start())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean_environment(**workspace), capture_output=True, text=True
    )
    assert done.returncode == 69
    assert "pip install pydantic" in done.stderr
    assert "Traceback" not in done.stderr


def test_neither_torch_nor_the_worker_is_imported(workspace):
    script = (
        f"import sys; sys.path.insert(0, {str(HOME)!r}); import entrypoint; "
        "code = entrypoint.main(['plan'], __import__('os').environ); "
        "heavy = {'torch', 'diffusers', 'transformers', 'datasets', 'pyarrow', 'sdtrain'} & set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean_environment(**workspace), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("verb", ["plan", "check"])
def test_any_locale_will_do(workspace, verb):
    done = launch(
        verb,
        **workspace,
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        lr="ünï",
        ODD=b"\xff".decode("utf-8", "surrogateescape"),
    )
    assert done.returncode == 64
    assert "Traceback" not in done.stderr
    assert "→" in done.stdout


def test_the_code_stays_when_the_reader_goes(workspace):
    shell = f"bash {HOME / 'train.sh'} plan | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", shell], env=clean_environment(**workspace, lr="x"), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (64, "")


@pytest.mark.parametrize("name", [number.name for number in protocol.STOP_SIGNALS])
def test_a_stop_before_training_is_75_without_a_traceback(tmp_path, name):
    source = f"import os, signal, time\nos.kill(os.getpid(), signal.{name})\ntime.sleep(60)"
    ended = started(tmp_path, "pydantic", source)
    assert ended.returncode == 75
    assert ended.stderr == "stopped: what is written so far is kept; the same command starts again\n"


@pytest.mark.parametrize(("signals", "code"), [("TERM TERM INT", 75), ("INT TERM INT", 130)])
def test_before_training_only_a_repeated_sigint_stops_at_once(tmp_path, signals, code):
    """A stop that takes long: the module goes on for a while after the first signal."""
    source = f"""
import os, signal, time
from sdjob import protocol
protocol.ONE_REQUEST = 0.1
first, *later = [getattr(signal, "SIG" + name) for name in "{signals}".split()]
try:
    os.kill(os.getpid(), first)
    time.sleep(60)
finally:
    for number in later:
        time.sleep(0.15)
        os.kill(os.getpid(), number)
"""
    assert started(tmp_path, "pydantic", source).returncode == code
