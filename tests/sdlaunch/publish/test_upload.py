"""Uploads by fsspec in this process: which files, in which order, and what is tried again."""

from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sdjob.output.layout import INDEX_FILE
from sdlaunch.publish import upload
from sdlaunch.publish.address import parse
from tests.sdlaunch.publish.conftest import FILES


class Flaky(MemoryFileSystem):
    """Fails as often as there are errors."""

    protocol = "flaky"
    errors: ClassVar[list[Exception]] = []
    order: ClassVar[list[str]] = []
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def put_file(self, source, target, **more):
        if self.errors:
            raise self.errors.pop(0)
        self.order.append(target)
        return super().put_file(source, target, **more)


@pytest.fixture
def flaky():
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.errors, Flaky.order, Flaky.store, Flaky.pseudo_dirs = [], [], {}, [""]
    Flaky.clear_instance_cache()
    return Flaky


def test_what_is_uploaded(result, flaky, capsys):
    (result / INDEX_FILE).write_text("{}")
    upload.upload(parse("flaky://bucket/dog"), result)
    assert {path.split("bucket/dog/")[1] for path in flaky.store} == {*FILES, INDEX_FILE}
    assert flaky.order[-1].endswith(INDEX_FILE)  # without it nothing loads
    assert "publishing 5 files" in capsys.readouterr().out


def test_what_may_pass_is_tried_again(result, flaky, capsys):
    flaky.errors = [ConnectionError("reset"), TimeoutError("slow")]
    pauses = []
    upload.upload(parse("flaky://bucket/dog"), result, sleep=pauses.append)
    assert pauses == [2.0, 4.0] and len(flaky.store) == 4
    assert "attempt 2 of 5 failed, the next in 4 s: TimeoutError: slow" in capsys.readouterr().out
    flaky.errors = [ConnectionError("reset")] * 9
    with pytest.raises(ConnectionError):
        upload.upload(parse("flaky://bucket/dog"), result, sleep=pauses.append)
    assert len(flaky.errors) == 4


def test_a_refusal_is_not_tried_again(result, flaky):
    flaky.errors = [PermissionError("AccessDenied")] * 2
    with pytest.raises(PermissionError):
        upload.upload(parse("flaky://bucket/dog"), result, sleep=pytest.fail)
    assert len(flaky.errors) == 1


def test_the_exit_codes(result, flaky, monkeypatch, capsys):
    monkeypatch.setattr(upload, "ATTEMPTS", 1)
    words = ["upload", "flaky://bucket/dog", str(result)]
    for errors, code in (([], 0), ([PermissionError("AccessDenied")], 73), ([ConnectionError("reset")], 75)):
        flaky.errors = errors
        assert upload.main(words) == code
    assert capsys.readouterr().err.splitlines() == ["PermissionError: AccessDenied", "ConnectionError: reset"]


def test_the_check_of_a_file_system(flaky, monkeypatch):
    address = parse("flaky://bucket/dog")
    assert upload.check(address) == {"problem": None, "warning": None}

    def failing(error):
        def exists(self, path):
            raise error

        monkeypatch.setattr(Flaky, "exists", exists)
        return upload.check(address)

    assert failing(PermissionError("no"))["problem"] == "PermissionError: no"
    assert failing(ConnectionError("no"))["warning"] == "ConnectionError: no"
