"""Whatever stands in the environment: never a traceback, always a documented code, never a shell."""

import contextlib
import io
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as some

import entrypoint
from sdjob.automatic import caching
from sdjob.exit_codes import ExitCode
from sdjob.problems import JobError
from sdjob.settings.flags import parse
from sdlaunch import plan
from sdlaunch.settings import names
from tests.sdlaunch.workspace import HOME, clean_environment, make_workspace

MOUNTS = ("MODEL_DIR", "DATASET_DIR", "OUTPUT_DIR", "PROJECT_DIR", "ENV_FILE", "CONFIG_FILE")
KNOWN = sorted(set(names.catalogue()) - set(MOUNTS))
TEXT = some.text(some.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=30)
SHORT = """
0 1 -1 2 1e-5 1e999 nan inf true no auto gemini torch_ddp bf16 16 [ ["a",1] [[]] / .. ~ ~nobody/x ;exit 1,2 ١ {model}
"""
LONG = ("", "\n", "$(touch {pwned})", "`touch {pwned}`", "; exit 1", "9" * 400, "\udcff", "a" * 5000, "\t1 ")
LIKELY = some.sampled_from([*SHORT.split(), *LONG])
NAMES = some.one_of(
    some.sampled_from(KNOWN),
    some.sampled_from(KNOWN).map(str.swapcase),
    some.sampled_from(["WORLD_SIZE", "RANK", "LOCAL_RANK", "SM_HOSTS", "SM_CURRENT_HOST", "SLURM_PROCID"]),
    some.sampled_from(
        ["SLURM_JOB_NODELIST", "PET_NNODES", "PET_RDZV_ENDPOINT", "SKYPILOT_NODE_IPS", "bacth_size"]
    ),
    some.sampled_from(
        ["LOCAL_WORLD_SIZE", "AZUREML_RUN_ID", "VC_WORKER_HOSTS", "OMPI_COMM_WORLD_LOCAL_SIZE", "NUM_NODES"]
    ),
    TEXT.filter(lambda name: name and "=" not in name),
)
ENVIRONMENTS = some.dictionaries(NAMES, some.one_of(LIKELY, TEXT), max_size=8)
FAST = how(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    root = tmp_path_factory.mktemp("ground")
    return root, make_workspace(root)


def told(value: str, root: Path) -> str:
    return value.replace("{pwned}", str(root / "pwned"))


@FAST
@given(
    environ=ENVIRONMENTS, flags=some.lists(some.one_of(TEXT, LIKELY, some.sampled_from(KNOWN)), max_size=2)
)
def test_any_environment_gives_a_documented_code(ground, environ, flags):
    root, workspace = ground
    given_ = {name: told(value, root) for name, value in environ.items()}
    with pytest.MonkeyPatch.context() as patch:
        for start in ("run", "Popen"):
            patch.setattr(subprocess, start, _refuse)
        patch.setattr("os.system", _refuse)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = entrypoint.main(["check", *flags], {**clean_environment(), **given_, **workspace})
    assert code in set(ExitCode)
    assert "Traceback" not in said.getvalue()
    assert (code == 0) == ("→" not in said.getvalue() or "--help" in flags or "-h" in flags)
    assert not (root / "pwned").exists()
    assert not (root / "output").exists()


def _refuse(*arguments, **_):
    raise AssertionError(f"started {arguments}")


@FAST
@given(environ=ENVIRONMENTS)
def test_a_plan_says_the_worker_what_was_set(ground, environ):
    """Every command that is built can be read back by the worker, to the very settings of the plan."""
    _, workspace = ground
    job = plan.prepare((), {**clean_environment(), **environ, **workspace}, HOME)
    if job.launch is None or "sdtrain" not in job.launch.argv:
        return
    doubled = job.launch.argv[job.launch.argv.index("sdtrain") + 1 :]
    words = [word.replace("$$", "$") for word in doubled]  # as torchrun hands them on
    assert all("\0" not in word for word in words)
    try:
        spec = parse(words)
    except JobError as error:  # pragma: no cover - what the test is to find
        raise AssertionError(words) from error
    for name, value in job.settings.items():  # on caches the worker decides
        if value.flag and not (name in caching.SETTINGS and value.source.startswith("auto")):
            read = getattr(spec, value.flag.removeprefix("--"))
            assert (list(read) if isinstance(read, tuple) else read) == value.value
