"""metadata.jsonl and metadata.csv: read as people write them, or refused with every mistake."""

import csv
import json

import pytest

from tests.support.datasets import captions, find, jsonl, only, png, problems, write_image


def test_metadata_jsonl(tmp_path):
    write_image(tmp_path / "sub dir" / "ä.png")
    write_image(tmp_path / "z.png")
    write_image(tmp_path / "not listed.png")
    jsonl(
        tmp_path,
        {"file_name": "z.png", "text": "a z"},
        "",
        {"file_name": "./sub dir/ä.png", "text": "", "n": 1},
    )
    info = find(tmp_path)
    assert (info.format.name, info.num_examples, info.columns) == ("metadata", 2, ("file_name", "text", "n"))
    assert list(info.files) == [tmp_path / "sub dir/ä.png", tmp_path / "z.png"]
    assert info.caption_column == "text"
    assert (
        find(tmp_path, captions=False).num_examples == 2
        and find(tmp_path, captions=False).format.name == "folder"
    )


def test_metadata_csv_with_byte_order_mark(tmp_path):
    write_image(tmp_path / "a.png")
    with (tmp_path / "metadata.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("file_name", "prompt"), ("a.png", 'quoted, "ü"\nsecond line')])
    info = find(tmp_path, caption_column="prompt")
    assert (info.num_examples, info.columns) == (1, ("file_name", "prompt"))


def test_wrong_caption_column_lists_the_columns(tmp_path):
    write_image(tmp_path / "a.png")
    jsonl(tmp_path, {"file_name": "a.png", "prompt": "x"})
    problem = only(tmp_path)
    assert "no column 'text'" in problem.found and "file_name, prompt" in problem.found
    assert "caption_column to one of prompt" in problem.remedy


def test_every_mistake_in_metadata_is_named_with_its_lines(tmp_path):
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "set" / name)
    write_image(tmp_path / "outside.png")
    path = jsonl(
        tmp_path / "set",
        {"file_name": "a.png", "text": "fine"},
        '{"file_name": "b.png", ',
        {"text": "no name"},
        {"file_name": "a.png", "text": "again"},
        {"file_name": "../outside.png", "text": "x"},
        {"file_name": "/etc/x.png", "text": "x"},
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "deep/gone.png", "text": "x"},
        {"file_name": "notes.md", "text": "x"},
        {"file_name": "b.png", "text": None},
        "[1, 2]",
    )
    found = problems(tmp_path / "set")
    assert {problem.subject for problem in found} == {str(path)}
    assert sorted(problem.found for problem in found) == [
        "a file_name outside this folder: lines 5, 6",
        "a file_name that an earlier line has: line 4",
        "a file_name that does not exist: lines 7, 8",
        "a file_name that is not an image: line 9",
        "no file_name: line 3",
        "no text in the caption column: line 10",
        "not a JSON object: lines 2, 11",
    ]
    assert all(problem.remedy for problem in found)


def test_long_lists_of_lines_are_cut(tmp_path):
    write_image(tmp_path / "a.png")
    jsonl(tmp_path, *({"file_name": f"{number}.png", "text": "x"} for number in range(1000)))
    assert "lines 1, 2, 3, 4, 5, 6 and 994 more" in only(tmp_path).found


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("metadata.jsonl", b"", "has no rows"),
        ("metadata.csv", b"file_name,text\n", "has no rows"),
        ("metadata.csv", b"name,text\na.png,x\n", "has no column 'file_name'"),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": "\xff"}', "cannot be read as UTF-8"),
    ],
)
def test_unusable_metadata(tmp_path, name, content, found):
    write_image(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    assert found in only(tmp_path).found


def test_captions_are_read_as_they_are_asked_for(tmp_path):
    rows = []
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(png())
        rows.append(json.dumps({"file_name": f"{number}.png", "text": f"caption {number}"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    assert captions(tmp_path, 2) == ["caption 0", "caption 1"]
    assert len(captions(tmp_path)) == 5
