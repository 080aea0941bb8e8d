"""`emit slurm`: a batch script for sbatch."""

from __future__ import annotations

import shlex

from sdlaunch.emit.task import NAME, Task


def render(task: Task) -> str:
    """One launcher a node, without a container, on folders that all nodes can reach."""
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --job-name={NAME}",
            f"#SBATCH --nodes={task.nodes}",
            "#SBATCH --ntasks-per-node=1",
            *([f"#SBATCH --gpus-per-node={task.gpu_count}"] if task.gpu_count else []),
            f"#SBATCH --signal=TERM@{task.grace}",
            "#SBATCH --requeue",
            "",
            *(f"export {name}={shlex.quote(value)}" for name, value in task.host_env.items()),
            "",
            shlex.join(["srun", "--kill-on-bad-exit=1", "bash", task.host_start]),
        ]
    )
