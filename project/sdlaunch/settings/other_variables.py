"""Variables that are not settings: of libraries, platforms and systems; and which of their values a run records."""

from __future__ import annotations

from functools import cache

from sdjob.redact import is_secret
from sdjob.settings.choices import TRACKERS
from sdlaunch.cluster.platforms import PLATFORMS
from sdlaunch.cluster.shared_variables import FOREIGN

# Prefixes of names, and whole names. Those of the platforms that state nodes are in cluster/platforms.py, those of
# trackers in sdjob/settings/choices.py.
_RECORDED_PREFIXES = """
NCCL_ GLOO_ CUDA CUDNN_ NVIDIA_ TORCH PYTORCH_ OMP_ MKL_ KMP_ OPENBLAS_ TRITON_ UCX_ ROCM_ HIP_ MIOPEN_ MUSA_ TOPS_
ECCL_ XLA_ PYTHON LC_ TRANSFORMERS_ DIFFUSERS_ TOKENIZERS_ ACCELERATE_ HF_HUB_ SDJOB_
"""
_RECORDED_NAMES = """
PATH LD_LIBRARY_PATH LD_PRELOAD LANG TZ TMPDIR HOSTNAME HF_HOME RANK LOCAL_RANK WORLD_SIZE
"""
# Only their names are recorded.
_OTHER_PREFIXES = """
DLC_ PAI_ KUBERNETES_ TF_ HF_ HUGGINGFACE_ AWS_ AZURE_ GOOGLE_ GCP_ ALIBABA_ PIP_ UV_ CONDA_ VIRTUAL_ENV LD_
XDG_ SSH_ GIT_ DBUS_
"""
_OTHER_NAMES = """
HOME USER LOGNAME SHELL LANGUAGE TERM PWD OLDPWD DEBIAN_FRONTEND
GROUP_RANK ROLE_RANK LOCAL_WORLD_SIZE GROUP_WORLD_SIZE ROLE_WORLD_SIZE
NODE_ADDR HOST_NODE_ADDR RANK_ID RANK_SIZE
MASTER_HOST MASTER_IP NODE_NAME POD_NAME JOB_NAME MODEL_ID DATASET_ID PROJECT_ID
"""


def is_foreign(name: str) -> bool:
    """Whether a variable belongs to a platform or a library, so that it is not a misspelled setting."""
    others = (*_OTHER_PREFIXES.split(), *(each.prefix for each in TRACKERS.values()), *FOREIGN)
    return _is_known(name) or name in _OTHER_NAMES.split() or name.startswith(others)


def is_recorded(name: str) -> bool:
    """Whether the value of a variable that is not a setting may be written down."""
    return _is_known(name) and not is_secret(name)


def _is_known(name: str) -> bool:
    return name in _RECORDED_NAMES.split() or name.startswith(_recorded_prefixes())


@cache
def _recorded_prefixes() -> tuple[str, ...]:
    platforms = [prefix for platform in PLATFORMS.values() for prefix in platform.prefixes]
    return (*_RECORDED_PREFIXES.split(), *platforms)
