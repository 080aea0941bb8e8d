"""The one command that trains, from settings and cluster: a pure function, so that it can be printed and compared."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdjob.output.layout import OutputLayout
from sdjob.protocol import Channel
from sdjob.settings import flags as worker_argv
from sdjob.settings.run_spec import RunSpec
from sdlaunch.cluster import accelerate
from sdlaunch.cluster.resolve import Cluster
from sdlaunch.user_script import Script

WORKER = "sdtrain"


@dataclass(frozen=True)
class LaunchPlan:
    """A command as a value: what is added to, and removed from, the environment it inherits."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    unset: tuple[str, ...]

    def shell(self) -> str:
        """The same command to paste into a shell."""
        removed = [word for name in self.unset for word in ("-u", name)]
        added = [f"{name}={value}" for name, value in self.env.items()]
        return shlex.join(["env", *removed, *added, *self.argv])

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of the command."""
        return {k: v for k, v in inherited.items() if k not in self.unset} | dict(self.env)


@dataclass(frozen=True)
class Host:
    """What the command needs to know about this machine and the environment that it inherits."""

    home: Path  # folder of train.sh
    python: str
    cores: int
    environ: Mapping[str, str]


@dataclass(frozen=True)
class Program:
    """What every process runs: the worker's module, or a user's script instead."""

    module: str = WORKER
    script: Script | None = None
    max_restarts: int = 0
    launcher: str = "torchrun"
    accelerate_config: str | None = None
    stop_grace: float = 25.0  # seconds

    def words(self, spec: RunSpec) -> tuple[str, ...]:
        """The program and its arguments, as torchrun takes them: it replaces ${local_rank} and $$ in them."""
        words = self.script.words if self.script else ("-m", self.module, *worker_argv.render(spec))
        return tuple(word.replace("$", "$$") for word in words)


def build(
    spec: RunSpec,
    cluster: Cluster,
    host: Host,
    passed_on: Mapping[str, str],
    program: Program = Program(),
) -> LaunchPlan:
    """The command of this node."""
    layout = OutputLayout(Path(spec.output_dir))
    start = _accelerate if program.launcher == "accelerate" else _torchrun
    argv = (host.python, *start(spec, cluster, program, layout), *program.words(spec))
    # torchrun reads PET_* as defaults of its flags, and fails on PET_STANDALONE="": everything is in argv.
    unset = tuple(sorted(name for name in host.environ if name.startswith("PET_")))
    env = {**passed_on, **_environment(layout, cluster, host, passed_on, program.stop_grace)}
    if program.launcher == "accelerate" and spec.device == "cpu":
        env["ACCELERATE_USE_CPU"] = "true"
    return LaunchPlan(argv, env, unset)


def _torchrun(spec: RunSpec, cluster: Cluster, program: Program, layout: OutputLayout) -> tuple[str, ...]:
    return (
        *("-m", "torch.distributed.run"),
        *_rendezvous(cluster),
        f"--nproc-per-node={cluster.nproc_per_node}",
        *([f"--max-restarts={program.max_restarts}"] if program.max_restarts else []),
        "--tee=3",
        f"--log-dir={_rank_logs(layout, cluster)}",
    )


def _accelerate(spec: RunSpec, cluster: Cluster, program: Program, layout: OutputLayout) -> tuple[str, ...]:
    """accelerate runs torchrun for several processes; a single one gets it here, for logs and restarts."""
    start = ("-m", accelerate.MODULE, *accelerate.flags(spec, cluster, program.accelerate_config))
    if cluster.world_size == 1:
        return (*start, *_torchrun(spec, cluster, program, layout))
    restarts = [f"--max_restarts={program.max_restarts}"] if program.max_restarts else []
    return (*start, *restarts, "--tee=3", f"--log_dir={_rank_logs(layout, cluster)}")


def _rank_logs(layout: OutputLayout, cluster: Cluster) -> Path:
    return layout.logs / f"ranks-of-node-{cluster.node_rank}"


def _rendezvous(cluster: Cluster) -> tuple[str, ...]:
    if cluster.endpoint is None:
        return ("--standalone",)  # picks a free port
    is_host = str(cluster.node_rank == 0).lower()  # without it torchrun guesses by comparing host names
    return (
        f"--nnodes={cluster.nodes}",
        f"--node-rank={cluster.node_rank}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={cluster.endpoint}",
        "--rdzv-id=sdjob",
        f"--rdzv-conf=is_host={is_host}",
    )


def _environment(
    layout: OutputLayout, cluster: Cluster, host: Host, passed_on: Mapping[str, str], grace: float
) -> dict[str, str]:
    threads = max(1, host.cores // cluster.nproc_per_node)
    code = str(host.home / "project")
    path = host.environ.get("PYTHONPATH")
    defaults = {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Where a platform signals every process, torchrun is signaled too, and ends its workers after this time.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(grace) + 5),
    }
    # Each node counts its own restarts, and not those that follow from a crash on another node: ranks do not agree on
    # the number of an attempt, so that each attempt needs a new store.
    nodes = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if cluster.endpoint else {}
    return {
        "PYTHONPATH": f"{code}:{path}" if path else code,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        **nodes,
        **{name: v for name, v in defaults.items() if not (host.environ.get(name) or passed_on.get(name))},
        **Channel.of_node(layout.run, cluster.node_rank).environment(),
    }
