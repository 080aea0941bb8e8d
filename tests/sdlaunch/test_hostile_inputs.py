"""Inputs that claim to be huge are refused within the memory and time of a plan."""

import contextlib
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from tests.sdlaunch.workspace import HOME, clean_environment, make_workspace
from tests.support.datasets import parquet, png

GIB = 1 << 30
SECONDS = 60.0
HUGE = 20 * GIB  # of files without blocks on the disk


def hole(path: Path, start: bytes = b"") -> None:
    """A file that claims to be huge."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(HUGE)


def model_file(folder: Path, name: str) -> Path:
    return next((folder / "model").rglob(name))


def tables(folder: Path) -> Path:
    shutil.rmtree(folder / "dataset")
    (folder / "dataset").mkdir()
    return folder / "dataset" / "a.parquet"


def unfolding_parquet(folder: Path) -> None:
    """A caption of 600 MiB in some kilobytes."""
    table = pa.table({"image": [{"bytes": png(), "path": None}], "text": ["a" * (600 << 20)]})
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    assert parquet(tables(folder), table, **options).stat().st_size < 100_000


def parquet_with_a_huge_footer(folder: Path) -> None:
    path = tables(folder)
    hole(path, b"PAR1")
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(struct.pack("<I", (2 << 30) - 1) + b"PAR1")


def image_bomb(folder: Path) -> None:
    from tests.sdjob.dataset.test_decoded_size import claiming

    for path in (folder / "dataset" / "images").iterdir():
        path.write_bytes(claiming(12_000, 12_000))


def huge_safetensors_header(folder: Path) -> None:
    hole(model_file(folder, "*.safetensors"), struct.pack("<Q", 100 * GIB) + b"{}")


def nested_json(folder: Path) -> None:
    count = 15 << 20
    model_file(folder, "model_index.json").write_bytes(b'{"a":' + b"[" * count + b"]" * count + b"}")


def wide_json(folder: Path) -> None:
    model_file(folder, "unet/config.json").write_bytes(b'{"a":[' + b"[]," * (60 << 20) + b"[]]}")


def huge_vocabulary(folder: Path) -> None:
    hole(model_file(folder, "vocab.json"), b"{")


def aliases(folder: Path) -> None:
    """The nth of these lists holds 9 ** n words."""
    lines = [f"- &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]" for n in range(12)]
    (folder / "concepts.yaml").write_text("\n".join(lines))


def long_yaml(folder: Path) -> None:
    (folder / "concepts.yaml").write_text("- []\n" * (1 << 20))


def huge_metadata(folder: Path) -> None:
    hole(folder / "dataset" / "images" / "metadata.jsonl")


def huge_metadata_csv(folder: Path) -> None:
    hole(folder / "dataset" / "images" / "metadata.csv", b"file_name,text\n")


def huge_captions(folder: Path) -> None:
    for number in range(5):
        hole(folder / "dataset" / "images" / f"{number}.txt")


def many_layers(folder: Path) -> None:
    path = model_file(folder, "unet/config.json")
    path.write_text(path.read_text().replace('"layers_per_block": 1', '"layers_per_block": 1000000000'))


def many_tensors(folder: Path) -> None:
    """A header of 80 MB, of tensors without values."""
    entries = (f'"{n}":{{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}' for n in range(1_200_000))
    header = ("{" + ",".join(entries) + "}").encode()
    model_file(folder, "*.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def memory_of(pid: int) -> int:
    """Resident bytes of a process and of all below it."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


@pytest.mark.parametrize(
    "make",
    [
        unfolding_parquet,
        parquet_with_a_huge_footer,
        image_bomb,
        huge_safetensors_header,
        nested_json,
        wide_json,
        huge_vocabulary,
        aliases,
        long_yaml,
        huge_metadata,
        huge_metadata_csv,
        huge_captions,
        many_layers,
        many_tensors,
    ],
)
def test_a_plan_refuses_it_in_bounded_memory_and_time(tmp_path, make):
    workspace = make_workspace(tmp_path)
    make(tmp_path)
    variables = {"recipe": "text_to_image"} if make is not image_bomb else {}
    if (tmp_path / "concepts.yaml").exists():
        variables = {"concepts_list": str(tmp_path / "concepts.yaml")}
    begin, peak = time.monotonic(), 0
    with subprocess.Popen(
        ["bash", str(HOME / "train.sh"), "plan"],
        env=clean_environment(**workspace, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.02)
        text = process.stdout.read()  # less than a pipe holds
    assert process.returncode == 66, text
    assert peak < GIB, text
    assert time.monotonic() - begin < SECONDS
