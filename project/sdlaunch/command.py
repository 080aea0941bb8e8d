"""The one command that trains, from settings and cluster: a pure function, so that it can be printed and compared."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdjob.formatting import visible
from sdjob.output.layout import OutputLayout
from sdjob.protocol import DEVICE_TIMEOUT, SAFE_PATH, Channel
from sdjob.redact import without_secrets
from sdjob.settings import flags as worker_argv
from sdjob.settings.run_spec import RunSpec
from sdlaunch.child_process import python_path
from sdlaunch.cluster import accelerate, platforms, sharing
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.cluster.route import LOOPBACK
from sdlaunch.python_variables import harmful
from sdlaunch.settings.options import LaunchOptions
from sdlaunch.user_script import Script

_BY_FILE = "store_type=file,keep_alive_interval=86400"  # how ranks of one node meet; the file is kept small
_HERE = "127.0.0.1"
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second name is the one before torch 2.9
_SCRIPT = ("-m", "sdjob.rank_output")  # runs a user's script, whose output goes to the launcher


@dataclass(frozen=True)
class LaunchPlan:
    """A command as a value: what is added to, and removed from, the environment it inherits."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    unset: tuple[str, ...]

    def shell(self) -> str:
        """The same command to paste into a shell, without secrets."""
        removed = [word for name in self.unset for word in ("-u", name)]
        added = [f"{name}={value}" for name, value in self.env.items()]
        return " ".join(map(_quoted, ["env", *removed, *added, *without_secrets(self.argv)]))

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        return {k: v for k, v in inherited.items() if k not in self.unset} | dict(self.env)


def _quoted(word: str) -> str:
    """A word for bash; what is not seen, and bytes that are not UTF-8, as in names from other systems, are escapes."""
    if visible(word) == word and not any("\udc80" <= letter <= "\udcff" for letter in word):
        return shlex.quote(word)
    escaped = visible(word.replace("\\", "\\\\").replace("'", "\\'"))
    return f"$'{escaped.encode(errors='surrogateescape').decode(errors='backslashreplace')}'"


@dataclass(frozen=True)
class Host:
    """What the command needs to know about this machine and the environment that it inherits."""

    home: Path  # folder of train.sh
    python: str
    cores: int
    environ: Mapping[str, str]
    numa_binding: str = ""  # of torchrun


def build(
    spec: RunSpec,
    cluster: Cluster,
    host: Host,
    passed_on: Mapping[str, str],
    options: LaunchOptions,
    script: Script | None = None,
) -> LaunchPlan:
    """The command of this node; every process runs the worker, or a user's script instead."""
    layout = OutputLayout(Path(spec.output_dir))
    if options.launcher == "accelerate":
        start = _accelerate(spec, cluster, options, host.environ)
    else:
        start = _torchrun(cluster, options, host.environ, host.numa_binding)
    program = (*_SCRIPT, *script.words) if script else ("-m", "sdtrain", *worker_argv.render(spec))
    words = (word.replace("$", "$$") for word in program)  # torchrun replaces ${local_rank} and $$
    argv = (host.python, *start, *words)
    # torchrun reads PET_* as defaults of its flags, and fails on PET_STANDALONE="": everything is in argv.
    read_by_torchrun = (name for name in host.environ if name.startswith("PET_"))
    unset = tuple(sorted({*read_by_torchrun, *harmful(host.environ)}))
    env = {**passed_on, **_environment(layout, cluster, host, passed_on, options)}
    if options.launcher == "accelerate":
        env |= {"ACCELERATE_USE_CPU": "true"} if spec.device == "cpu" else {}
        env |= (
            {} if cluster.endpoint else {"PET_LOCAL_ADDR": _HERE}
        )  # a flag of torchrun that accelerate lacks
    if spec.device == "cuda" and not any({**host.environ, **passed_on}.get(name) for name in _ALLOCATOR):
        # Segments that grow leave no unusable gaps between blocks of different sizes.
        env[_ALLOCATOR[0]] = "expandable_segments:True"
    return LaunchPlan(argv, env, unset)


def _torchrun(
    cluster: Cluster, options: LaunchOptions, environ: Mapping[str, str], numa_binding: str = ""
) -> tuple[str, ...]:
    return (
        *("-m", "torch.distributed.run"),
        *_rendezvous(cluster, options, environ),
        f"--nproc-per-node={cluster.nproc_per_node}",
        *([f"--max-restarts={options.max_restarts}"] if options.max_restarts else []),
        *([f"--numa-binding={numa_binding}"] if numa_binding else []),
        f"--log-dir={os.devnull}",  # no files: they would hold secrets, and the launcher writes its own
    )


def _accelerate(
    spec: RunSpec, cluster: Cluster, options: LaunchOptions, environ: Mapping[str, str]
) -> tuple[str, ...]:
    """accelerate runs torchrun for several processes; a single one gets it here, for restarts."""
    start = ("-m", accelerate.MODULE, *accelerate.flags(spec, cluster, options.accelerate_config))
    if cluster.world_size == 1:
        return (*start, *_torchrun(cluster, options, environ))
    restarts = [f"--max_restarts={options.max_restarts}"] if options.max_restarts else []
    meeting = () if cluster.endpoint else ("--rdzv_backend=c10d", f"--rdzv_conf={_BY_FILE}")
    return (*start, *restarts, *meeting, f"--log_dir={os.devnull}")


def _rendezvous(cluster: Cluster, options: LaunchOptions, environ: Mapping[str, str]) -> tuple[str, ...]:
    if cluster.endpoint is None:
        # Not --standalone, whose store listens on every interface.
        return ("--nnodes=1", "--rdzv-backend=c10d", f"--rdzv-conf={_BY_FILE}", f"--local-addr={_HERE}")
    rendezvous_id = options.rendezvous_id or platforms.job_id(environ) or "sdjob"
    is_host = str(cluster.node_rank == 0).lower()  # without it torchrun guesses by comparing host names
    return (
        f"--nnodes={cluster.nodes}",
        f"--node-rank={cluster.node_rank}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={cluster.endpoint}",
        f"--rdzv-id={rendezvous_id}",
        f"--rdzv-conf=is_host={is_host},join_timeout={options.rendezvous_timeout}",
        # Otherwise the other nodes get this host's own name, which they may not resolve.
        *([f"--local-addr={cluster.route.address}"] if cluster.route else []),
    )


def _environment(
    layout: OutputLayout, cluster: Cluster, host: Host, passed_on: Mapping[str, str], options: LaunchOptions
) -> dict[str, str]:
    defaults = {
        "OMP_NUM_THREADS": sharing.threads(host.cores, cluster.nproc_per_node).value,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Where a platform signals every process, torchrun is signaled too, and ends its workers after this time.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(options.stop_grace) + 5),
    }
    defaults |= (cluster.route or LOOPBACK).variables() if cluster.route or not cluster.endpoint else {}
    return {
        "PYTHONPATH": python_path(host.home / "project", host.environ.get("PYTHONPATH")),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        **({} if host.environ.get("PYTHONSAFEPATH") else SAFE_PATH),
        # Rank 0 serves the store of the ranks: on one node, to the loopback interface alone. On several, each node
        # counts its own restarts, so that ranks do not agree on the number of an attempt: each needs a new store.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        **{name: v for name, v in defaults.items() if not (host.environ.get(name) or passed_on.get(name))},
        DEVICE_TIMEOUT: sharing.device_timeout(options.hang_timeout).value,
        **Channel.of_node(layout.run, cluster.node_rank).environment(),
    }
