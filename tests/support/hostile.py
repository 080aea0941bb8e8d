"""Inputs made to take all memory or time of who reads them: small, or without blocks on the disk.

Each function damages a workspace in its folder and returns the variables that it needs.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
from PIL import Image

from tests.support.datasets import parquet, png

GIB = 1 << 30
HUGE = 10 << 40  # bytes, fewer than 16 TiB, the most of ext4
TABLE = {"recipe": "text_to_image"}  # needs captions
DEPTH = 15 << 20


def hole(path: Path, start: bytes = b"", end: bytes = b"", size: int = HUGE) -> None:
    """A file that claims to be huge."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
        file.seek(-len(end), os.SEEK_END)
        file.write(end)


def model_file(folder: Path, name: str) -> Path:
    return next((folder / "model").rglob(name))


def images(folder: Path) -> Path:
    return folder / "dataset" / "images"


def table(folder: Path) -> Path:
    """The path of a table that replaces the images."""
    shutil.rmtree(folder / "dataset")
    (folder / "dataset").mkdir()
    return folder / "dataset" / "a.parquet"


# --- settings ----------------------------------------------------------------------------------------


def endless_settings(folder: Path) -> dict[str, str]:
    return {"CONFIG_FILE": "/dev/zero", "ENV_FILE": "/dev/zero"}


def huge_settings(folder: Path) -> dict[str, str]:
    hole(folder / "config.yaml", b"lr: 1\n")
    hole(folder / "job.env", b"lr=1\n")
    return {"CONFIG_FILE": str(folder / "config.yaml"), "ENV_FILE": str(folder / "job.env")}


def silent_pipes(folder: Path) -> dict[str, str]:
    """Pipes that nothing writes to, held open."""
    for name in ("config", "env"):
        os.mkfifo(folder / name)
        os.open(folder / name, os.O_RDWR)
    return {"CONFIG_FILE": str(folder / "config"), "ENV_FILE": str(folder / "env")}


def _aliases(of: str) -> str:
    """YAML whose nth list holds 9 ** n words."""
    return "\n".join(f"{of}&a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]" for n in range(12))


def aliases_as_settings(folder: Path) -> dict[str, str]:
    lines = _aliases("").splitlines()
    (folder / "config.yaml").write_text("\n".join(f"lr{number}: {line}" for number, line in enumerate(lines)))
    return {"CONFIG_FILE": str(folder / "config.yaml")}


def wide_settings(folder: Path) -> dict[str, str]:
    (folder / "config.yaml").write_text("lr: [" + "[]," * (85 << 10) + "]")
    return {"CONFIG_FILE": str(folder / "config.yaml")}


def huge_script(folder: Path) -> dict[str, str]:
    hole(folder / "train.py", b"pass\n")
    return {"script": str(folder / "train.py")}


# --- lists of concepts -------------------------------------------------------------------------------


def _concepts(folder: Path, text: str) -> dict[str, str]:
    (folder / "concepts.yaml").write_text(text)
    return {"concepts_list": str(folder / "concepts.yaml")}


def aliases(folder: Path) -> dict[str, str]:
    return _concepts(folder, _aliases("- "))


def long_yaml(folder: Path) -> dict[str, str]:
    return _concepts(folder, "- []\n" * (51 << 10))


def huge_concepts(folder: Path) -> dict[str, str]:
    hole(folder / "concepts.yaml", b"[]\n")
    return {"concepts_list": str(folder / "concepts.yaml")}


def concepts_in_themselves(folder: Path) -> dict[str, str]:
    """Entries that lead back to the folder of the list, which holds links to itself."""
    links_to_themselves(folder)
    entry = {"instance_data_dir": ".", "instance_prompt": "x"}
    return _concepts(folder, json.dumps([entry] * 20))


# --- models ------------------------------------------------------------------------------------------


def huge_safetensors_header(folder: Path) -> dict[str, str]:
    hole(model_file(folder, "*.safetensors"), struct.pack("<Q", 100 * GIB) + b"{}")
    return {}


def huge_weights(folder: Path) -> dict[str, str]:
    """A header that is right, of a tensor of 10 TiB in a file of that size."""
    entry = {"a": {"dtype": "U8", "shape": [HUGE], "data_offsets": [0, HUGE]}}
    header = json.dumps(entry).encode()
    path = model_file(folder, "*.safetensors")
    hole(path, struct.pack("<Q", len(header)) + header, size=8 + len(header) + HUGE)
    return {}


def many_tensors(folder: Path) -> dict[str, str]:
    """A header of as many tensors without values as is read."""
    entry = '"{:x}":{{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}'
    header = ("{" + ",".join(map(entry.format, range(290_000))) + "}").encode()
    assert len(header) < 16 << 20
    model_file(folder, "*.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return {}


def _named_tensors(folder: Path, names: list[str]) -> None:
    """More tensors in the U-Net, each of two bytes."""
    path = next(model_file(folder, "unet/config.json").parent.glob("*.safetensors"))
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    entries, data = json.loads(content[8:length]), content[length:]
    for name in names:
        entries[name] = {"dtype": "F16", "shape": [1, 1], "data_offsets": [len(data), len(data) + 2]}
        data += bytes(2)
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def deep_level(folder: Path) -> dict[str, str]:
    """A block of a U-Net that halves its images a hundred billion times."""
    _named_tensors(folder, ["down_blocks.99999999999.resnets.0.conv1.weight"])
    return {}


def long_layers(folder: Path) -> dict[str, str]:
    """Names of layers, of which the target of a LoRA is none, and of which an expression takes the third power."""
    _named_tensors(folder, [f"{'a' * 900}.{number}.!.weight" for number in range(300)])
    return {"lora_rank": "4", "lora_target_modules": "none"}


def many_dots(folder: Path) -> dict[str, str]:
    """A model in one file with a name of a million words."""
    shutil.rmtree(folder / "model")
    names = ["input_blocks.0.0.weight", "." * 1_000_000]
    entries = {
        f"model.diffusion_model.{name}": {
            "dtype": "F16",
            "shape": [4, 4],
            "data_offsets": [32 * n, 32 * n + 32],
        }
        for n, name in enumerate(names)
    }
    header = json.dumps(entries).encode()
    (folder / "model").mkdir()
    (folder / "model" / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    return {}


def huge_shape(folder: Path) -> dict[str, str]:
    """Numbers whose product takes hours."""
    axes = ",".join(["9" * 4000] * 3900)
    header = f'{{"a":{{"dtype":"F16","shape":[{axes}],"data_offsets":[0,0]}}}}'.encode()
    model_file(folder, "*.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return {}


def nested_json(folder: Path) -> dict[str, str]:
    text = b'{"a":' + b"[" * DEPTH + b"]" * DEPTH + b"}"
    model_file(folder, "model_index.json").write_bytes(text)
    return {}


def nested_tokenizer(folder: Path) -> dict[str, str]:
    text = b'{"model":' + b"[" * DEPTH + b"]" * DEPTH + b"}"
    tokenizer = model_file(folder, "vocab.json").parent
    for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json"):
        (tokenizer / name).write_bytes(text)
    return {}


def wide_json(folder: Path) -> dict[str, str]:
    model_file(folder, "unet/config.json").write_bytes(b'{"a":[' + b"[]," * (60 << 20) + b"[]]}")
    return {}


def widest_json(folder: Path) -> dict[str, str]:
    """As large as a file of JSON may be, of values that take the most memory."""
    model_file(folder, "model_index.json").write_bytes(
        b'{"a":[' + b"[[]]," * (((32 << 20) - 20) // 5) + b"[]]}"
    )
    return {}


def huge_vocabulary(folder: Path) -> dict[str, str]:
    for name in ("vocab.json", "merges.txt"):
        hole(model_file(folder, name), b"{")
    return {}


def huge_configs(folder: Path) -> dict[str, str]:
    for path in (folder / "model").rglob("*.json"):
        hole(path, b"{")
    return {}


def hostile_keys(folder: Path) -> dict[str, str]:
    """A component for every name, and one outside."""
    index = {f"part{number}": ["diffusers", "UNet2DConditionModel"] for number in range(100_000)}
    index |= {"../../private": [None, None], "/etc": ["os", "system"]}
    model_file(folder, "model_index.json").write_text(json.dumps(index))
    return {}


def many_layers(folder: Path) -> dict[str, str]:
    path = model_file(folder, "unet/config.json")
    path.write_text(path.read_text().replace('"layers_per_block": 1', '"layers_per_block": 1000000000'))
    return {}


def huge_shard_index(folder: Path) -> dict[str, str]:
    weights = next(model_file(folder, "unet/config.json").parent.glob("*.safetensors"))
    weights.unlink()
    names = {f"{number:x}": "../" * 1000 + "etc/passwd" for number in range(5000)}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps({"weight_map": names}))
    return {}


def many_shards(folder: Path) -> dict[str, str]:
    weights = next(model_file(folder, "unet/config.json").parent.glob("*.safetensors"))
    weights.unlink()
    names = {f"{number:x}": f"{number:x}" for number in range(100_000)}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps({"weight_map": names}))
    return {}


def long_shard_name(folder: Path) -> dict[str, str]:
    weights = next(model_file(folder, "unet/config.json").parent.glob("*.safetensors"))
    weights.unlink()
    names = {"a": "b" * (30 << 20)}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps({"weight_map": names}))
    return {}


def _archive(folder: Path) -> Path:
    shutil.rmtree(folder / "model")
    (folder / "model").mkdir()
    return folder / "model" / "a.ckpt"


PICKLED = {"allow_pickle": "1"}


def pickle_bomb(folder: Path) -> dict[str, str]:
    """As many empty dictionaries as a pickle may have bytes, in an archive of some kilobytes."""
    path = _archive(folder)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02(" + b"}" * ((8 << 20) - 10) + b"t.")
    return PICKLED


def huge_pickle(folder: Path) -> dict[str, str]:
    path = _archive(folder)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02(" + b"N" * (99 << 20) + b"t.")
    return PICKLED


def _pickle(folder: Path, *parts: bytes) -> dict[str, str]:
    with zipfile.ZipFile(_archive(folder), "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"".join(parts) + b".")
    return PICKLED


def pickle_of_a_far_note(folder: Path) -> dict[str, str]:
    """A note at the highest number: pickle makes room for all below, 32 GiB."""
    return _pickle(folder, b"}r\xff\xff\xff\x7f")


def pickle_of_a_key_without_end(folder: Path) -> dict[str, str]:
    """A tuple of two tuples of two, 60 deep: C code that cannot be interrupted hashes 2^60 of them."""
    return _pickle(folder, b"}", b")q\x00", b"h\x00\x86q\x00" * 60, b"Ns")


def pickle_in_itself(folder: Path) -> dict[str, str]:
    """A state whose state is that state."""
    return _pickle(folder, b"}q\x00X\x0a\x00\x00\x00state_dicth\x00s")


def pickle_of_many_axes(folder: Path) -> dict[str, str]:
    """A tensor of 3 million axes of 2^39 numbers, of which C code that cannot be interrupted makes the product."""

    def tensor(name: str, shape: bytes) -> bytes:
        named = b"X" + struct.pack("<I", len(name)) + name.encode()
        storage = b"(X\7\0\0\0storagectorch\nHalfStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\1tQ"
        return named + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0(" + shape + b"t(t\x89NtR"

    first = "model.diffusion_model.input_blocks."
    axis = b"\x8a\6" + (1 << 39).to_bytes(6, "little") + b"q\0"
    tensors = (
        tensor(f"{first}0.0.weight", b"K\4" * 4),
        tensor(f"{first}1.1.transformer_blocks.0.attn2.to_k.weight", b"K\4M\0\3"),
        tensor("model.diffusion_model.out.0.weight", axis + b"h\0" * 3_000_000),
    )
    return _pickle(folder, b"}(", *tensors, b"u") | {"prediction_type": "epsilon"}


def huge_archive_list(folder: Path) -> dict[str, str]:
    """An archive whose list of files is said to take 20 GiB."""
    size = 20 * GIB
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size - 98, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, size - 98, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", *[0xFFFF] * 4, *[0xFFFFFFFF] * 2, 0)
    assert len(end64 + locator + end) == 98
    hole(_archive(folder), b"PK\3\4", end64 + locator + end, size)
    return PICKLED


def pickled_code(folder: Path) -> dict[str, str]:
    _archive(folder).write_bytes(pickle.dumps([os.system]))
    return PICKLED


def huge_hub_cache(folder: Path) -> dict[str, str]:
    """A cache folder of the hub whose revision is named by 10 TiB."""
    shutil.rmtree(folder / "model")
    repository = folder / "model" / "models--a--b"
    for name in ("refs", "blobs", "snapshots/x", "snapshots/y"):
        (repository / name).mkdir(parents=True)
    hole(repository / "refs/main", b"x")
    return {}


# --- datasets ----------------------------------------------------------------------------------------


def unfolding_parquet(folder: Path) -> dict[str, str]:
    """A caption of 600 MiB in some kilobytes."""
    rows = pa.table({"image": [{"bytes": png(), "path": None}], "text": ["a" * (600 << 20)]})
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    assert parquet(table(folder), rows, **options).stat().st_size < 100_000
    return TABLE


def unfolding_images(folder: Path) -> dict[str, str]:
    """An image of 600 MiB of zeros in some kilobytes."""
    rows = pa.table({"image": [{"bytes": png() + bytes(600 << 20), "path": None}], "text": ["a"]})
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    assert parquet(table(folder), rows, **options).stat().st_size < 100_000
    return TABLE


def parquet_with_a_huge_footer(folder: Path) -> dict[str, str]:
    hole(table(folder), b"PAR1", struct.pack("<I", (2 << 30) - 1) + b"PAR1")
    return TABLE


def saved_dataset_of_holes(folder: Path) -> dict[str, str]:
    path = table(folder)
    for name in ("state.json", "dataset_info.json"):
        hole(path.with_name(name), b"{")
    return TABLE


def arrow_file_of_holes(folder: Path) -> dict[str, str]:
    path = table(folder)
    path.with_name("state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    path.with_name("dataset_info.json").write_text("{}")
    hole(path.with_name("a.arrow"), struct.pack("<iI", -1, (2 << 30) - 1))
    return TABLE


def huge_metadata(folder: Path) -> dict[str, str]:
    hole(images(folder) / "metadata.jsonl")
    return TABLE


def huge_metadata_csv(folder: Path) -> dict[str, str]:
    hole(images(folder) / "metadata.csv", b"file_name,text\n")
    return TABLE


def metadata_of_tiny_rows(folder: Path) -> dict[str, str]:
    """Each row takes a hundred times its three bytes as an object."""
    (images(folder) / "metadata.jsonl").write_bytes(b"{}\n" * (60 << 20))
    return TABLE


def metadata_of_empty_lines(folder: Path) -> dict[str, str]:
    (images(folder) / "metadata.jsonl").write_bytes(b"\n" * (250 << 20))
    return TABLE


def metadata_in_one_line(folder: Path) -> dict[str, str]:
    """With a character that makes Python take four bytes for each of the others."""
    text = '{"file_name": "0.png", "text": "' + "\U0001f40d" + "a" * (100 << 20) + '"}'
    (images(folder) / "metadata.jsonl").write_text(text, encoding="utf-8")
    return TABLE


def metadata_of_many_columns(folder: Path) -> dict[str, str]:
    header = ",".join(map(str, range(1_000_000)))
    (images(folder) / "metadata.csv").write_text(f"file_name,text,{header}\n0.png,x\n")
    return TABLE


def long_captions(folder: Path) -> dict[str, str]:
    """Rows that are right, with captions of 10 MiB."""
    text = "\U0001f40d" * (10 << 18)
    rows = [f'{{"file_name": "{number}.png", "text": "{text}"}}' for number in range(5)]
    (images(folder) / "metadata.jsonl").write_text("\n".join(rows))
    return TABLE


def huge_captions(folder: Path) -> dict[str, str]:
    for number in range(5):
        hole(images(folder) / f"{number}.txt")
    return TABLE


def links_to_themselves(folder: Path) -> dict[str, str]:
    """Each of a hundred links in a folder leads to the folder itself: there are 100 ** 4 paths of four steps."""
    for place in (folder / "dataset", folder / "model"):
        shutil.rmtree(place)
        place.mkdir()
        for number in range(100):
            (place / f"link{number}").symlink_to(".")
    return {}


def many_folders(folder: Path) -> dict[str, str]:
    """Ten thousand folders, in each of which there are no images."""
    shutil.rmtree(images(folder))
    for number in range(10_000):
        (folder / "dataset" / f"{number // 100}" / f"{number % 100}").mkdir(parents=True)
    return {}


def many_files(folder: Path) -> dict[str, str]:
    """A quarter of a million with long names, of which none has a caption."""
    name = "é" * 100
    (images(folder) / "first").touch()
    for number in range(250_000):
        if number % 50_000 == 0:  # of one file there are 65,000 names at most
            (images(folder) / "first").unlink()
            (images(folder) / "first").touch()
        os.link(images(folder) / "first", images(folder) / f"{name}{number}.jpg")
    return TABLE


# --- images ------------------------------------------------------------------------------------------


def claiming_png(width: int, height: int, color_type: int = 6) -> bytes:
    """A PNG whose header claims a size, with 8 bits for each channel."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def image_bomb(folder: Path) -> dict[str, str]:
    for path in images(folder).iterdir():
        path.write_bytes(claiming_png(12_000, 12_000))
    return {}


def image_of_many_pixels(folder: Path) -> dict[str, str]:
    """Of one color, nearly as large as is decoded, in some hundred kilobytes."""
    Image.new("L", (12_000, 12_000)).save(images(folder) / "0.png", compress_level=1)
    return {}


def huge_image_files(folder: Path) -> dict[str, str]:
    """Of formats whose readers read a file as a whole, and one with a chunk of text that takes all of it."""
    for path in images(folder).iterdir():
        path.unlink()
    for suffix, options in (
        ("webp", {"lossless": True}),
        ("avif", {}),
        ("gif", {}),
        ("tiff", {}),
        ("jp2", {}),
    ):
        path = images(folder) / f"0.{suffix}"
        Image.new("RGB", (8, 8)).save(path, **options)
        hole(path, path.read_bytes())
    text = struct.pack(">I", (2 << 30) - 1) + b"tEXt"
    hole(images(folder) / "1.png", claiming_png(8, 8)[:33] + text)
    return {}


def images_that_are_not_files(folder: Path) -> dict[str, str]:
    for number, path in enumerate(sorted(images(folder).iterdir())):
        path.unlink()
        if number % 2:
            path.symlink_to("/dev/zero")
        else:
            os.mkfifo(path)
    return {}


# --- what an earlier start left ----------------------------------------------------------------------


def huge_records(folder: Path) -> dict[str, str]:
    output = folder / "output"
    for name in (
        *("run/starts.json", "run/metrics.jsonl", "run/events.jsonl", "run/lock-0", "run/plan.json"),
        *("report.json", "failure.json", "report.html", "run/failure-0.json", "logs/node-0.log"),
        *("checkpoint/model_index.json", "checkpoint/checkpoint-000002/manifest.json"),
    ):
        hole(output / name, b"{")
    return {}


def huge_checkpoint(folder: Path) -> dict[str, str]:
    """A manifest with numbers of any size, of files of 10 TiB, and others with records of such numbers."""
    checkpoints = folder / "output/checkpoint"
    for step, size in ((1, "9" * 4000), (2, "1e999"), (3, str(HUGE)), (4, "-1"), (5, '"x"')):
        at = checkpoints / f"checkpoint-{step:06d}"
        hole(at / "model.safetensors")
        hole(at / "state.json", b"{")
        files = ",".join(
            f'"{n}":{{"bytes":{size},"sha256":"x"}}' for n in ("model.safetensors", "state.json")
        )
        (at / "manifest.json").write_text(f'{{"files":{{{files}}}}}')
    many = checkpoints / f"checkpoint-{'9' * 200}"
    many.mkdir()
    (many / "manifest.json").write_text('{"files":' + "[" * 900 + "]" * 900 + "}")
    return {}


def metrics_of_empty_lines(folder: Path) -> dict[str, str]:
    path = folder / "output/run/metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\n" * (64 << 20))
    return {}
