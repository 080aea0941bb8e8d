"""Captions in the encodings that people have: read where there is one reading, else refused with what it may be."""

import codecs

import pytest

from sdjob.dataset.text_files import read_text
from sdjob.problems import JobError

TEXT = "一只狗, a dog\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    ],
)
def test_unicode_is_read(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    assert read_text(tmp_path / "a.txt") == TEXT


@pytest.mark.parametrize(
    ("content", "found", "remedy"),
    [
        ("a dog\n一只狗\n".encode("gbk"), "line 2; as GBK it says '一只狗'", "iconv -f GBK"),
        ("café".encode("latin-1"), "line 1, byte 0xe9", "UTF-8"),
        (TEXT.encode("utf-16-le"), "UTF-8", "iconv"),
        ("a dog".encode("utf-16-le"), "zero bytes", "iconv -f UTF-16LE -t UTF-8 'a b.txt'"),
        ("a dog".encode("utf-16-be"), "zero bytes", "UTF-8"),
        (codecs.BOM_UTF32_LE + "a dog".encode("utf-32-le"), "zero bytes", "UTF-8"),
        (codecs.BOM_UTF16_LE + b"a", "cannot be read", "UTF-8"),
        (b"", "", ""),
    ],
)
def test_others_are_named(tmp_path, content, found, remedy):
    path = tmp_path / "a b.txt"
    path.write_bytes(content)
    if not content:
        assert read_text(path) == ""
        return
    with pytest.raises(JobError) as caught:
        read_text(path)
    (problem,) = caught.value.problems
    assert problem.subject == str(path) and found in problem.found and remedy in problem.remedy
