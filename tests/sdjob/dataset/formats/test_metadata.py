"""metadata.jsonl and metadata.csv: read as people write them, or refused with every mistake.

Tests of metadata, metadata_rows and file_names.
"""

import csv
import json
import unicodedata

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
        "a file_name outside this folder: lines 5 (../outside.png), 6 (/etc/x.png)",
        "a file_name that an earlier line has: line 4 (a.png)",
        "a file_name that does not exist: lines 7 (gone.png), 8 (deep/gone.png)",
        "a file_name that is not an image: line 9 (notes.md)",
        "no file_name: line 3",
        "no text in the caption column: line 10 (b.png)",
        "not a JSON object: lines 2, 11",
    ]
    assert all(problem.remedy for problem in found)


def test_long_lists_of_lines_are_cut(tmp_path):
    write_image(tmp_path / "a.png")
    jsonl(tmp_path, *({"file_name": f"{number}.png", "text": "x"} for number in range(1000)))
    assert (
        "lines 1 (0.png), 2 (1.png), 3 (2.png), 4 (3.png), 5 (4.png), 6 (5.png) and 994 more"
        in only(tmp_path).found
    )


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


def csv_file(folder, content):
    write_image(folder / "a.png")
    write_image(folder / "b.png")
    path = folder / "metadata.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("file_name,text\na.png,a dog, sitting\nb.png,x\n", "more fields than the header: line 2"),
        (
            "file_name,text,n\n\na.png,a dog, sitting\nb.png,x\n",
            "fewer fields than the header: line 4 (b.png)",
        ),
        ('file_name,text\na.png,"one\ntwo"\nb.png,"x",y\n', "more fields than the header: line 4"),
        ('file_name,text\na.png,"a dog\nb.png,x\n', "is not CSV from line 3 on (unexpected end of data)"),
        ('file_name,text\na.png,"a "red" dog"\nb.png,x\n', "is not CSV from line 2 on"),
    ],
)
def test_captions_with_commas_must_be_quoted(tmp_path, content, found):
    path = csv_file(tmp_path, content)
    problem = only(tmp_path)
    assert problem.subject == str(path) and found in problem.found
    assert "uote captions that hold commas" in problem.remedy


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("file_name;text\na.png;a dog, sitting\n", "by semicolons (';'): 'file_name;text'"),
        ("file_name\ttext\na.png\ta dog\n", "by tabs ('\\t')"),
        ("file_name, text\na.png, a dog\n", "spaces around names of columns: ' text'"),
        ("file_name,text,text\na.png,x,y\n", "columns of the same name: text"),
        ("file_name,text\na.png,一只狗\n".encode("gbk"), "as GBK it says"),
    ],
)
def test_tables_that_would_be_misread_are_refused(tmp_path, content, found):
    csv_file(tmp_path, content)
    assert found in only(tmp_path).found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["metadata.csv", "METADATA.CSV", "Metadata.JSONL"])
def test_any_case_and_unicode_encoding(tmp_path, name, encoding):
    write_image(tmp_path / "a.png")
    text = 'file_name,text\r\na.png,"一只狗, sitting"\r\n'
    if name.lower().endswith("jsonl"):
        text = json.dumps({"file_name": "a.png", "text": "一只狗, sitting"}, ensure_ascii=False)
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert captions(tmp_path) == ["一只狗, sitting"]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"file_name": "a.png", "text": ["one", "two"]}, "a list in the caption column: line 1 (a.png)"),
        ({"file_name": "a.png", "text": 7}, "no text in the caption column: line 1 (a.png)"),
        (
            {"file_name": "https://example.org/a.png", "text": "x"},
            "that is a URL: line 1 (https://example.org",
        ),
        ('{"file_name": "a.png", "text": "x", "text": "y"}', "the same key twice: line 1 (a.png)"),
        ('{"file_name": "a.png", "text": "\\ud83d"}', "not valid Unicode: line 1 (a.png)"),
        ('{"file_name": "\\ud83d.png", "text": "x"}', "not valid Unicode: line 1"),
        ("[" * 100_000, "not a JSON object: line 1"),
        ({"file_name": "A.PNG", "text": "x"}, "does not exist: line 1 (A.PNG)"),
        ({"file_name": "C:\\data\\a.png", "text": "x"}, "does not exist: line 1 (C:\\data\\a.png)"),
    ],
)
def test_values_that_are_not_what_they_must_be(tmp_path, row, found):
    write_image(tmp_path / "a.png")
    path = jsonl(tmp_path, row)
    problem = only(tmp_path)
    assert problem.subject == str(path) and found in problem.found


def test_the_same_image_twice_is_refused_however_it_is_written(tmp_path):
    write_image(tmp_path / "sub" / "a b.png")
    names = ("sub/a b.png", "./sub//a b.png", "sub\\a b.png", "sub/a%20b.png", str(tmp_path / "sub/a b.png"))
    jsonl(tmp_path, *({"file_name": name, "text": "x"} for name in names))
    assert only(tmp_path).found.startswith(
        "a file_name that an earlier line has: lines 2 (./sub//a b.png), 3 ("
    )


@pytest.mark.parametrize(
    "written", ["./sub/é b.png", "sub\\é b.png", ".\\sub\\é b.png", "sub/%C3%A9%20b.png", "{}/sub/é b.png"]
)
@pytest.mark.parametrize("there", ["NFC", "NFD"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_as_other_systems_write_them(tmp_path, written, there, form):
    image = write_image(tmp_path / "sub" / unicodedata.normalize(there, "é b.png"))
    jsonl(tmp_path, {"file_name": unicodedata.normalize(form, written.format(tmp_path)), "text": "x"})
    assert list(find(tmp_path).files) == [image] and captions(tmp_path) == ["x"]


def test_a_name_that_exists_is_taken_as_it_is_written(tmp_path):
    for name in ("a%20b.png", "a b.png", "c\\d.png", "c/d.png"):
        write_image(tmp_path / name)
    jsonl(tmp_path, *({"file_name": name, "text": name} for name in ("a%20b.png", "c\\d.png")))
    assert [path.name for path in find(tmp_path).files] == ["a%20b.png", "c\\d.png"]


def test_a_missing_image_is_named_with_what_may_be_meant(tmp_path):
    write_image(tmp_path / "cat.jpg")
    jsonl(tmp_path, {"file_name": "Cat.png", "text": "x"})
    assert "there: cat.jpg" in only(tmp_path).remedy
