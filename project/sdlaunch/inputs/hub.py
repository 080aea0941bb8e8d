"""Names of the Hugging Face hub in place of folders: used only where nothing local has the name, and offline=0."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sdjob.files import shown
from sdjob.problems import Problem, bad_input
from sdlaunch.display.redact import secrets_of
from sdlaunch.inputs import subprocess_log
from sdlaunch.inputs.cache_dir import cache_folder
from sdlaunch.inputs.hub_download import COMPLETE
from sdlaunch.inputs.mounts import Mounts, is_hub_name
from sdlaunch.preflight.timeouts import NoAnswer, Task
from sdlaunch.settings.options import LaunchOptions


@dataclass(frozen=True)
class Fetched:
    """The options with folders in place of names; what is still to be fetched, and what could not be."""

    options: LaunchOptions
    awaited: tuple[str, ...] = ()  # settings: model_name, dataset_name
    warnings: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def provide(
    options: LaunchOptions,
    mounts: Mounts,
    cache_dir: str | None,
    environ: Mapping[str, str],
    *,
    fetch: bool,
) -> Fetched:
    """Finds out which names are the hub's; with `fetch`, downloads what is not in the cache yet."""
    fetched = Fetched(options)
    if options.offline:
        return fetched
    for setting, kind, mount in (
        ("model_name", "model", mounts.model),
        ("dataset_name", "dataset", mounts.dataset),
    ):
        name = getattr(options, setting)
        if not is_hub_name(name) or _is_local(mount / name, options.check_timeout):
            continue
        folder = cache_folder(cache_dir, environ) / "hub" / kind / name.replace("/", "--")
        fetched = replace(fetched, options=fetched.options.model_copy(update={setting: str(folder)}))
        if (folder / COMPLETE).exists():
            continue
        if not fetch:
            warning = f"{setting}: nothing local is called {name}: it is downloaded from the hub when the job starts"
            fetched = replace(
                fetched, awaited=(*fetched.awaited, setting), warnings=(*fetched.warnings, warning)
            )
        elif problem := _download(setting, kind, name, folder, environ):
            fetched = replace(
                fetched, awaited=(*fetched.awaited, setting), problems=(*fetched.problems, problem)
            )
    return fetched


def _is_local(path: Path, patience: float) -> bool:
    """Whether something has this name; a mount that does not answer is for the checks to report."""
    try:
        return Task(path.exists).result(time.monotonic() + patience)
    except (NoAnswer, OSError):
        return True


def _download(setting: str, kind: str, name: str, folder: Path, environ: Mapping[str, str]) -> Problem | None:
    print(f"downloading {kind} {name} from the hub to {shown(folder)}", flush=True)
    code = Path(__file__).parents[2]
    online = {
        key: value for key, value in environ.items() if key not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    }
    argv = [sys.executable, "-m", "sdlaunch.inputs.hub_download", kind, name, str(folder)]
    own = str(folder.parents[2] / "huggingface")  # the home of this user need not be writable
    more = {
        "PYTHONPATH": f"{code}:{environ.get('PYTHONPATH', '')}".rstrip(":"),
        "TQDM_MININTERVAL": "10",  # seconds between two lines of progress
        "HF_HUB_CACHE": own,
        "HF_XET_CACHE": own,
    }
    status, tail = subprocess_log.run(argv, {**online, **more}, secrets_of(environ))
    if status == 0:
        return None
    return bad_input(
        setting,
        f"nothing local is called {name}, and it could not be downloaded ({tail or f'exit status {status}'})",
        "Correct the name, give HF_TOKEN if it is not public, or mount it and name its folder.",
    )
