"""`python -m sdlaunch.inputs.hub_download TYPE NAME FOLDER`: download a model or a dataset of the hub.

Runs as a separate process, the only one that imports huggingface_hub.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sdjob.model.architectures import component_names

COMPLETE = ".complete"  # written last, so that half a download is never used
# model.safetensors, model.fp16.safetensors.index.json, pytorch_model-00001-of-00002.bin, …
_WEIGHTS = re.compile(
    r"[a-z_]+(?:-\d+-of-\d+)?(?P<variant>\.\w+)?(?:-\d+-of-\d+)?\.(?P<suffix>safetensors|bin)\b"
)
_OTHER_FRAMEWORKS = (".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".ckpt")


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

    files = wanted(repo_type, HfApi().list_repo_files(name, repo_type=repo_type))
    snapshot_download(name, repo_type=repo_type, local_dir=folder, allow_patterns=files)
    (folder / COMPLETE).touch()


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    except Exception as error:  # of the network, the hub, the disk: one line each
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
