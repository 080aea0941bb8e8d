"""Names of the Hugging Face hub instead of folders: only with offline=0, and where nothing local has the name."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sdjob.files import shown
from sdjob.problems import Problem, bad_input
from sdlaunch.inputs.contents import is_hub_name
from sdlaunch.inputs.fetch import Fetched, run
from sdlaunch.inputs.hub_download import COMPLETE
from sdlaunch.inputs.mounts import Mounts
from sdlaunch.timeouts import NoAnswer, Task


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
        if not is_hub_name(name) or _is_local(mount / name, options.check_timeout):
            continue
        folder = cache / "hub" / repo_type / name.replace("/", "--")
        fetched = replace(fetched, options=fetched.options.model_copy(update={setting: str(folder)}))
        if (folder / COMPLETE).exists():
            continue
        if not fetch:
            warning = f"{setting}: nothing local is called {name}: it is downloaded from the hub when the job starts"
            fetched = fetched.awaiting(setting, warning)
        elif problem := _download(setting, repo_type, name, folder, environ):
            fetched = fetched.awaiting(setting, problem)
    return fetched


def _is_local(path: Path, timeout: float) -> bool:
    """Whether something has this name; a mount that does not answer is for the checks to report."""
    try:
        return Task(path.exists).result(time.monotonic() + timeout)
    except (NoAnswer, OSError):
        return True


def _download(
    setting: str, repo_type: str, name: str, folder: Path, environ: Mapping[str, str]
) -> Problem | None:
    print(f"downloading {repo_type} {name} from the hub to {shown(folder)}", flush=True)
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    cache = str(folder.parents[2] / "huggingface")  # the home of this user need not be writable
    online = {name: value for name, value in environ.items() if name not in offline} | {
        "PYTHONPATH": f"{Path(__file__).parents[2]}:{environ.get('PYTHONPATH', '')}".rstrip(":"),
        "TQDM_MININTERVAL": "10",  # seconds between two lines of progress
        "HF_HUB_CACHE": cache,
        "HF_XET_CACHE": cache,
    }
    argv = [sys.executable, "-m", "sdlaunch.inputs.hub_download", repo_type, name, str(folder)]
    reason = run(argv, online)
    found = f"nothing local is called {name}, and it could not be downloaded ({reason})"
    remedy = "Correct the name, give HF_TOKEN if it is not public, or mount it and name its folder."
    return bad_input(setting, found, remedy) if reason else None
