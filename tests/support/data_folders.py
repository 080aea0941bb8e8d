"""Folders of data as people have them: random mixtures of layouts, names, encodings and mistakes."""

import csv
import io
import json
import random
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.datasets import png

KINDS = (("captions",), ("table",), ("csv",), ("shards",), ("captions", "shards"), ("captions", "table"))
STEMS = ("a", "b", "c d", "e.f", "é", "e\\f", "100%", "g%20h", "train", "test")
TEXTS = ("a dog", "one cat, sitting", 'a "red" fox', "一只狗", "", " ", "a;b\tc")
SHARDS = ("train-00000-of-00001.parquet", "a.parquet", "b.parquet", "val.parquet")
TEXT_TYPES = (pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view())


@dataclass
class Author:
    """Makes decisions: usual ones, and in a disorderly folder often others."""

    rng: random.Random
    disorder: float

    def pick(self, usual: Any, *others: Any) -> Any:
        return self.rng.choice(others) if self.rng.random() < self.disorder else usual

    def name(self, text: str) -> str:
        """The text as one system or the other writes names."""
        return unicodedata.normalize(self.pick("NFC", "NFD"), text)


def write_folder(root: Path, seed: int) -> None:
    """A folder with something in it, possibly a dataset."""
    rng = random.Random(seed)
    author = Author(rng, rng.choice((0.03, 0.1, 0.3)))
    root.mkdir()
    kinds = rng.choice(
        (("captions",), ("table",), ("csv",), ("shards",), ("captions", "shards"), ("captions", "table"))
    )
    images = _images(root, author) if kinds != ("shards",) else []
    if "captions" in kinds:
        _captions(images, author)
    if "table" in kinds or "csv" in kinds:
        _table(root, images, author, "metadata.jsonl" if "table" in kinds else "metadata.csv")
    if "shards" in kinds:
        _shards(root, author)
    for name in author.pick(
        (), ("README.md", "notes.txt"), ("more.zip", "a.npz"), (".DS_Store", "captions.json")
    ):
        (root / name).write_bytes(b"x")


def _images(root: Path, author: Author) -> list[Path]:
    folder = author.pick("", "sub", "Train", "latest", "my_TEST", "big cats")
    images = []
    for number, stem in enumerate(author.rng.sample(STEMS, author.rng.randint(1, 5))):
        suffix = author.pick(".png", ".PNG", ".jpg", ".heic")
        path = root / author.pick(folder, "", "sub", "validation", "train") / (author.name(stem) + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(author.pick(png((number, 0, 0)), png((number, 1, 0)), b"broken"))
        images.append(path)
    return images


def _captions(images: list[Path], author: Author) -> None:
    suffix, encoding = author.pick(".txt", ".TXT", ".caption", ".md"), _encoding(author)
    for image in images:
        name = author.name(author.pick(image.stem, image.name, "another"))
        text = author.rng.choice(TEXTS)
        (image.parent / (name + suffix)).write_bytes(text.encode(encoding, "ignore"))


def _encoding(author: Author) -> str:
    return str(author.pick("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "gbk"))


def _table(root: Path, images: list[Path], author: Author, name: str) -> None:
    folder = author.pick(root, images[0].parent)
    listed = images[author.pick(0, 1) :]
    rows = [(_written(path, folder, author), author.rng.choice(TEXTS)) for path in listed]
    rows += author.pick(
        [], rows[:1], [("gone.png", "x")], [("https://example.org/a.png", "x")], [("../a.png", "x")]
    )
    text = _csv(rows, author) if name.endswith("csv") else _json_lines(rows, author)
    name = author.pick(name, name.upper(), name.title(), "captions.json", "data_TEST.csv")
    (folder / name).write_bytes(text.encode(_encoding(author), "ignore"))


def _written(path: Path, folder: Path, author: Author) -> str:
    """A path as it may stand in a table."""
    name = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
    quoted, backward = name.replace(" ", "%20"), name.replace("/", "\\")
    return author.name(author.pick(name, f"./{name}", backward, str(path), quoted, name.upper()))


def _csv(rows: list[tuple[str, str]], author: Author) -> str:
    separator = author.pick(",", ";", "\t")
    table = [("file_name", "text"), *rows]
    if author.rng.random() < 0.5:  # written by hand, without quotes
        return "".join(f"{name}{separator}{text}\n" for name, text in table)
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows(table)
    return out.getvalue()


def _json_lines(rows: list[tuple[str, str]], author: Author) -> str:
    values = [{"file_name": name, "text": author.pick(text, [text], None)} for name, text in rows]
    return "".join(json.dumps(value, ensure_ascii=author.pick(False, True)) + "\n" for value in values)


def _shards(root: Path, author: Author) -> None:
    folder = root / author.pick("data", "", "sub", "Train", "my_TEST")
    folder.mkdir(parents=True, exist_ok=True)
    for name in author.rng.sample(SHARDS, author.rng.choice((1, 1, 2))):
        count = author.rng.randint(1, 3)
        encoded = [png((number, 0, 0)) for number in range(count)]
        struct = [{"bytes": content, "path": None} for content in encoded]
        texts = [author.pick(author.rng.choice(TEXTS), "x", None) for _ in range(count)]
        columns = {
            "image": pa.array(author.pick(struct, encoded, ["https://example.org/a.png"] * count)),
            "text": pa.array(texts, author.pick(pa.string(), *TEXT_TYPES)),
        }
        order = author.pick(["image", "text"], ["text", "image"])
        path = folder / author.pick(name, name.upper(), "x-00000-of-00002.parquet")
        pq.write_table(pa.table({column: columns[column] for column in order}), path)
        if author.pick(False, False, True):
            path.write_bytes(path.read_bytes()[:-10])
