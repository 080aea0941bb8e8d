"""`emit slurm`, run by bash with a stub of srun."""

from tests.sdlaunch.emit.emitted import (
    ENV,
    MOUNTS,
    NODES,
    NUMBERED,
    SETTINGS,
    emit,
    run_with_stub,
    shellcheck,
)
from tests.sdlaunch.workspace import HOME


def test_slurm(tmp_path):
    text = emit("slurm", **SETTINGS, **NUMBERED)
    words, environ = run_with_stub("srun", text, tmp_path)
    assert words == ["--cpus-per-task=6", "--kill-on-bad-exit=1", "bash", str(HOME / "train.sh")]
    assert {name: environ[name] for name in (*ENV, *MOUNTS)} == {**ENV, **MOUNTS}
    assert environ["PROJECT_DIR"] == str(HOME)
    assert "NNODES" not in environ
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "#!/bin/bash",
        "#SBATCH --job-name=sdjob",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --cpus-per-task=6",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --signal=TERM@35",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "# 75: stopped by an external signal and resumable",
    ]


def test_it_passes_the_linter():
    assert shellcheck(emit("slurm", **SETTINGS, **NODES)) == ""
