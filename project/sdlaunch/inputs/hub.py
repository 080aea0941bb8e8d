"""Names of the Hugging Face hub instead of folders: only with offline=0, and where nothing local has the name.

`python -m sdlaunch.inputs.hub TYPE NAME FOLDER` downloads a model or a dataset: a separate process, the only one that
imports huggingface_hub.
"""

from __future__ import annotations

import re
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from sdjob.files import shown
from sdjob.model import hub_cache
from sdjob.model.architectures import component_names
from sdjob.problems import Problem, bad_input
from sdjob.writing import write_text
from sdlaunch.child_process import python_path
from sdlaunch.inputs.fetch import Fetched, run
from sdlaunch.inputs.mounts import Mounts
from sdlaunch.timeouts import NoAnswer, Task

_MEMORY = 16 << 30  # bytes; the hub's own client reserves some per thread and file
_COMPLETE = ".complete"  # written last, so that half a download is never used
# model.safetensors, model.fp16.safetensors.index.json, pytorch_model-00001-of-00002.bin, …
_WEIGHTS = re.compile(
    r"[a-z_]+(?:-\d+-of-\d+)?(?P<variant>\.\w+)?(?:-\d+-of-\d+)?\.(?P<suffix>safetensors|bin)\b"
)
_OTHER_FRAMEWORKS = (".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".ckpt")


def provide(
    fetched: Fetched, mounts: Mounts, cache: Path, environ: Mapping[str, str], *, fetch: bool
) -> Fetched:
    """Replace names of the hub by folders of the cache; with `fetch`, download those that are not there yet."""
    options = fetched.options
    for setting, repo_type, mount in (
        ("model_name", "model", mounts.model),
        ("dataset_name", "dataset", mounts.dataset),
    ):
        name = getattr(options, setting)
        if not hub_cache.is_hub_name(name) or _is_local(mount, name, options.check_timeout):
            continue
        folder = cache / "hub" / repo_type / name.replace("/", "--")
        fetched = replace(fetched, options=fetched.options.model_copy(update={setting: str(folder)}))
        if (folder / _COMPLETE).exists():
            fetched = replace(fetched, notes=(*fetched.notes, _as_downloaded(setting, name, folder)))
            continue
        if not fetch:
            warning = f"{setting}: nothing local is called {name}: it is downloaded from the hub when the job starts"
            fetched = fetched.awaiting(setting, warning)
        elif problem := _download(setting, repo_type, name, folder, environ, options.hang_timeout):
            fetched = fetched.awaiting(setting, problem)
    return fetched


def _as_downloaded(setting: str, name: str, folder: Path) -> str:
    """A line of the plan: a download is kept, so that a job can resume, whatever becomes of the name on the hub."""
    revision = ""
    with suppress(OSError):  # a cache of another user
        revision = (folder / _COMPLETE).read_text().strip()[:12]
    revision = revision or "not recorded"
    return f"{setting}: {name} as downloaded earlier (revision {revision}); remove {shown(folder)} for a newer one"


def _is_local(mount: Path, name: str, timeout: float) -> bool:
    """Whether something has this name, in a mounted cache of the hub too; a mount that does not answer is for the
    checks to report."""

    def exists() -> bool:
        return (mount / name).exists() or hub_cache.repository_of(mount, name) is not None

    try:
        return Task(exists).result(time.monotonic() + timeout)
    except (NoAnswer, OSError):
        return True


def _download(
    setting: str, repo_type: str, name: str, folder: Path, environ: Mapping[str, str], patience: float
) -> Problem | None:
    print(f"downloading {repo_type} {name} from the hub to {shown(folder)}", flush=True)
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    cache = str(folder.parents[2] / "huggingface")  # the home of this user need not be writable
    online = {name: value for name, value in environ.items() if name not in offline} | {
        "PYTHONPATH": python_path(Path(__file__).parents[2], environ.get("PYTHONPATH")),
        "TQDM_MININTERVAL": "10",  # seconds between two lines of progress
        "HF_HUB_CACHE": cache,
        "HF_XET_CACHE": cache,
    }
    argv = [sys.executable, "-m", "sdlaunch.inputs.hub", repo_type, name, str(folder)]
    reason = run(argv, online, patience, _MEMORY)
    found = f"nothing local is called {name}, and it could not be downloaded ({reason})"
    remedy = "Correct the name, give HF_TOKEN if it is not public, or mount it and name its folder."
    return bad_input(setting, found, remedy) if reason else None


# --- in the process that downloads -------------------------------------------------------------------


def wanted(repo_type: str, names: Sequence[str]) -> list[str]:
    """The files to download. Of a model only the parts of its pipeline, and each weight once: safetensors rather
    than pickles, full precision rather than a variant."""
    if repo_type == "dataset":
        return [name for name in names if not name.startswith(".")]
    components = component_names()
    parts: dict[str, list[str]] = defaultdict(list)
    for name in names:
        part, _, file = name.rpartition("/")
        if (part in components or name == "model_index.json") and not file.endswith(_OTHER_FRAMEWORKS):
            parts[part].append(name)
    return [name for files in parts.values() for name in _best(files)]


def _best(files: list[str]) -> list[str]:
    """The files of one part, without weights that are there in a better form."""
    matches = {name: _WEIGHTS.match(PurePosixPath(name).name) for name in files}
    weights = [match for match in matches.values() if match]
    suffix = "safetensors" if any(match["suffix"] == "safetensors" for match in weights) else "bin"
    plain = any(match["suffix"] == suffix and not match["variant"] for match in weights)
    return [
        name
        for name, match in matches.items()
        if match is None or (match["suffix"] == suffix and not (plain and match["variant"]))
    ]


def main(repo_type: str, name: str, folder: Path) -> None:
    """Download, continuing what an interrupted download left."""
    from huggingface_hub import HfApi, snapshot_download

    # One revision, also if the name gets another one meanwhile.
    revision = HfApi().repo_info(name, repo_type=repo_type).sha
    names = HfApi().list_repo_files(name, repo_type=repo_type, revision=revision)
    files = wanted(repo_type, names)
    snapshot_download(name, repo_type=repo_type, revision=revision, local_dir=folder, allow_patterns=files)
    write_text(folder / _COMPLETE, f"{revision or ''}\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    except Exception as error:  # of the network, the hub, the disk: one line each
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
