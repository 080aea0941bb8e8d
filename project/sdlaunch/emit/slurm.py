"""`emit slurm`: a batch script for sbatch."""

from __future__ import annotations

from sdjob.exit_codes import ExitCode
from sdlaunch.emit.task import NAME, Task, shell_words


def render(task: Task) -> str:
    """One launcher per node, without a container, on folders that all nodes can reach.

    SLURM itself requeues a job that it preempts or whose node fails, but not one that ends after a signal, as before
    the time limit: the script does that. Cancelling a job ends the script first.
    """
    # From 22.05 on srun does not take the number of cores from the allocation.
    srun = ["srun", f"--cpus-per-task={task.cores}", "--kill-on-bad-exit=1", "bash", task.host_start]
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --job-name={NAME}",
            f"#SBATCH --nodes={task.nodes}",
            "#SBATCH --ntasks-per-node=1",
            f"#SBATCH --cpus-per-task={task.cores}",  # SLURM's default is one core
            *([f"#SBATCH --gpus-per-node={task.gpu_count}"] if task.gpu_count else []),
            f"#SBATCH --signal=TERM@{task.grace}",
            "#SBATCH --requeue",
            "#SBATCH --open-mode=append",  # a requeued job keeps the output of its earlier starts
            "",
            *(f"export {name}={shell_words([value])}" for name, value in task.host_env.items()),
            "",
            "status=0",
            f"{shell_words(srun)} || status=$?",
            f"# {int(ExitCode.STOPPED)}: stopped by an external signal and resumable",
            f'if [ "$status" -eq {int(ExitCode.STOPPED)} ]; then',
            '    scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            'exit "$status"',
        ]
    )
