"""Variables of several nodes that belong to no single platform: WORLD_SIZE and RANK, and those of other frameworks."""

from __future__ import annotations

from collections.abc import Iterator

from sdjob import reading
from sdjob.problems import Problem, bad_setting
from sdlaunch.cluster.platforms import Claim, Environ, is_ascend, stated

# Names and prefixes of the variables of other frameworks, which are no misspelled settings.
FOREIGN = ("TF_CONFIG", "CLUSTER_SPEC", "PADDLE_", "JOB_COMPLETION_INDEX")
_REMEDY = (
    "Start one launcher per node and set NNODES, NODE_RANK and MASTER_ADDR; "
    "or set NNODES=1 to train on this node only."
)


def world_size(environ: Environ) -> Claim:
    """PAI-DLC, Volcano, early PyTorchJob: WORLD_SIZE and RANK count nodes there; `resolve` finds out if they
    count processes here."""
    if environ.get("PET_NNODES") or environ.get("NUM_NODES") or is_ascend(environ):
        return Claim()
    unclear = _unclear_world(environ)
    if environ.get("LOCAL_RANK"):
        return Claim(unclear=unclear)
    nodes = stated(environ, "WORLD_SIZE")
    indices = ("VC_TASK_INDEX", "VK_TASK_INDEX") if nodes else ()
    return Claim(
        nodes=nodes,
        node_rank=stated(environ, "RANK", *indices),
        address=stated(environ, "MASTER_ADDR"),
        unclear=unclear,
    )


def _unclear_world(environ: Environ) -> Problem | None:
    """Variables of processes, which here belong to a launcher: torchrun's, and Ascend's, set for each device."""
    for local, size in (("LOCAL_RANK", "WORLD_SIZE"), ("RANK_ID", "RANK_SIZE")):
        rank, count = environ.get(local) or "0", environ.get(size) or "1"
        if environ.get(local) and (rank, count) != ("0", "1"):
            found = f"{rank!r} with {size}={count!r}: unclear whether these count nodes or processes"
            return bad_setting(local, found, _REMEDY)
    return None


def other_frameworks(environ: Environ) -> Claim:
    """Variables for TensorFlow, Vertex AI, Paddle and indexed Jobs of Kubernetes, which do not say how nodes meet."""
    found = next(_of_several(environ), None)
    return Claim(unclear=bad_setting(*found, _REMEDY) if found else None)


def _of_several(environ: Environ) -> Iterator[tuple[str, str]]:
    """The variables that say that there are several nodes, each with what it says."""
    for name in ("TF_CONFIG", "CLUSTER_SPEC"):
        if (count := _hosts(environ.get(name, ""))) > 1:
            yield name, f"it lists {count} hosts"
    trainers = environ.get("PADDLE_TRAINERS_NUM") or "1"
    if trainers != "1":
        yield "PADDLE_TRAINERS_NUM", f"{trainers!r} trainers"
    index = environ.get("JOB_COMPLETION_INDEX") or "0"
    if index != "0":
        yield "JOB_COMPLETION_INDEX", f"pod {index} of an indexed Job"


def _hosts(text: str) -> int:
    """How many hosts that train are in the JSON of such a cluster."""
    try:
        cluster = reading.json_of(text)["cluster"]
        return sum(len(hosts) for role, hosts in cluster.items() if role not in ("ps", "evaluator"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0
