"""`python -m sdlaunch.publish.upload check|upload ADDRESS [FOLDER]`: the only process that reaches out.

`check` prints JSON: {"problem": text or null, "warning": text or null}. `upload` prints lines as it goes on, and ends
with 0, with 75 for a failure that may pass, or with 73 for a refusal; its last line says why.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sdjob.exit_codes import ExitCode
from sdjob.formatting import counted, in_units
from sdjob.output.layout import INDEX_FILE, is_step_folder
from sdjob.problems import JobError
from sdlaunch.publish.address import HUB, Address, parse

ATTEMPTS = 5
FIRST_PAUSE = 2.0  # seconds, doubled after each attempt
_REFUSALS = (
    *(PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError),
    *(NotImplementedError, ValueError, TypeError, ImportError),
)
_REFUSAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "LocalTokenNotFoundError")
_TEMPORARY = (408, 425, 429)  # of the 4xx of HTTP
_LAST = INDEX_FILE  # without it, half a result does not load


def main(arguments: Sequence[str]) -> int:
    action, text, *folder = arguments
    address = parse(text)
    if action == "check":
        print(json.dumps(check(address)))
        return int(ExitCode.FINISHED)
    try:
        upload(address, Path(folder[0]))
    except JobError as error:
        print(error, file=sys.stderr)
        return error.code
    except Exception as error:
        print(_reason(error), file=sys.stderr)
        return int(ExitCode.OUTPUT_FULL if is_refusal(error) else ExitCode.STOPPED)
    return int(ExitCode.FINISHED)


def files_of(folder: Path) -> list[Path]:
    """The files of a result: without step checkpoints, hidden and temporary ones, and links."""

    def found(below: Path) -> Iterator[Path]:
        for path in sorted(below.iterdir()):
            if path.name.startswith(".") or path.is_symlink() or (below == folder and is_step_folder(path)):
                continue
            if path.is_dir():
                yield from found(path)
            elif path.is_file():
                yield path

    return sorted(found(folder), key=lambda path: path == folder / _LAST)


def upload(address: Address, folder: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """Upload every file, with retries; raises the error of the last attempt."""
    files = files_of(folder)
    size = in_units(sum(path.stat().st_size for path in files))
    print(f"publishing {counted(len(files), 'file')} ({size}) to {address.text}", flush=True)
    send = _to_hub if address.scheme == HUB else _to_file_system
    for attempt in range(1, ATTEMPTS + 1):
        try:
            where = send(address, folder, files)
            print(f"published: {where}", flush=True)
            return
        except Exception as error:
            if attempt == ATTEMPTS or is_refusal(error):
                raise
            pause = FIRST_PAUSE * 2 ** (attempt - 1)
            print(
                f"attempt {attempt} of {ATTEMPTS} failed, the next in {pause:g} s: {_reason(error)}",
                flush=True,
            )
            sleep(pause)


def _to_hub(address: Address, folder: Path, files: Sequence[Path]) -> str:
    """One commit, in a repository that is private if it is new."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    repository = api.create_repo(address.path, private=True, exist_ok=True)
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    api.create_commit(address.path, operations, commit_message="Result of a training run")
    return str(repository)


def _to_file_system(address: Address, folder: Path, files: Sequence[Path]) -> str:
    import fsspec

    system, root = fsspec.core.url_to_fs(address.text)
    for path in files:
        target = f"{root}/{path.relative_to(folder).as_posix()}"
        if address.has_folders:
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
        system.put_file(str(path), target)
        print(f"  {path.relative_to(folder)}", flush=True)
    return address.text


def check(address: Address) -> dict[str, str | None]:
    """Whether it can be written, as far as that is known without writing; what may pass is only a warning."""
    try:
        problem = _hub_problem(address) if address.scheme == HUB else _file_system_problem(address)
        return {"problem": problem, "warning": None}
    except Exception as error:
        key = "problem" if is_refusal(error) else "warning"
        return {"problem": None, "warning": None, key: _reason(error)}


def _hub_problem(address: Address) -> str | None:
    from huggingface_hub import HfApi, get_token

    if not (token := get_token()) or not token.isascii():
        return "needs a token with write access in HF_TOKEN"
    about: dict[str, Any] = HfApi().whoami()
    if about.get("auth", {}).get("accessToken", {}).get("role") == "read":
        return "the token in HF_TOKEN can only read"
    owner = address.path.partition("/")[0]
    owners = [about.get("name"), *(each.get("name") for each in about.get("orgs", ()))]
    return (
        None
        if owner in owners
        else f"the token in HF_TOKEN is not of {owner}, but of {', '.join(filter(None, owners))}"
    )


def _file_system_problem(address: Address) -> str | None:
    """None, or raises what its library says of the credentials."""
    import fsspec

    system, root = fsspec.core.url_to_fs(address.text)
    system.exists(root)
    return None


def is_refusal(error: BaseException) -> bool:
    """Whether another attempt would end in the same way."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _TEMPORARY
    return isinstance(error, _REFUSALS) or type(error).__name__ in _REFUSAL_NAMES


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.exit(main(sys.argv[1:]))
