"""Which exceptions mean something that a person can fix."""

import errno
import os

import pytest

from sdtrain.runtime.errors import is_write_failure, problem_of


class SafetensorError(Exception):
    """As the library names its own."""


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def wrapped(number: int) -> SafetensorError:
    return SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")


@pytest.mark.parametrize("made", [os_error, wrapped])
@pytest.mark.parametrize(
    "name", ["ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EIO", "EACCES", "ENOTCONN", "ESTALE", "ETIMEDOUT"]
)
def test_a_disk_that_is_full_and_a_mount_that_has_gone_are_failures_to_write(made, name):
    assert is_write_failure(made(getattr(errno, name)))


@pytest.mark.parametrize("error", [os_error(errno.ENOENT), wrapped(errno.ENOENT), ValueError("(os error x)")])
def test_other_errors_are_none(error):
    assert not is_write_failure(error)


@pytest.mark.parametrize("made", [os_error, wrapped])
def test_wherever_it_comes_from_a_full_disk_is_73_and_a_mount_that_has_gone_is_not_known_to_be_the_output(
    made,
):
    full = problem_of(made(errno.ENOSPC))
    assert full and (full.subject, full.code) == ("OUTPUT_DIR", 73)
    assert problem_of(made(errno.ENOTCONN)) is None


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda out: (out / "file" / "x").mkdir(), "file/x is a file, not a folder, or is below one"),
        (lambda out: (out / "file").rename(out / "full"), "full is a folder, where a file is to be written"),
        (lambda out: (out / "gone" / "x").write_text(""), "gone/x does not exist"),
        (lambda out: os.scandir(bytes(out / "gone")), "gone does not exist"),
    ],
)
def test_a_path_of_the_output_folder_that_others_changed_is_named(tmp_path, act, words):
    output = tmp_path / "output"
    (output / "full" / "x").mkdir(parents=True)
    (output / "file").touch()
    with pytest.raises(OSError, match="Errno") as raised:
        act(output)
    problem = problem_of(raised.value, output)
    assert problem and (problem.code, problem.subject) == (73, "OUTPUT_DIR")
    assert words in problem.found
    assert problem_of(raised.value, tmp_path / "other") is None


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOTCONN, errno.EIO, errno.EMFILE])
def test_a_mount_that_fails_is_not_taken_for_a_change(tmp_path, number):
    """With a problem the next attempt would not be made."""
    error = OSError(number, os.strerror(number), str(tmp_path / "metrics.jsonl"))
    assert problem_of(error, tmp_path) is None


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("error", "code", "found"),
    [
        (OutOfMemoryError("Tried to allocate 2 GiB"), 71, "the device has too little for this run"),
        (
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors"),
            71,
            "(RuntimeError: CUDA error: out of memory)",
        ),
        (MemoryError(), 71, "the host or the container has too little for this run (MemoryError)"),
        (os_error(errno.ENOMEM), 71, "the host or the container"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), 69, "a fault of its hardware"),
        (
            RuntimeError("DataLoader worker (pid 1) is killed by signal: Bus error. "),
            69,
            "shared memory is full",
        ),
        (
            RuntimeError("unable to write to file </torch_1_2_0>: No space left on device (28)"),
            69,
            "shared memory is full",
        ),
    ],
)
def test_what_the_text_of_an_exception_tells(error, code, found):
    problem = problem_of(error)
    assert problem
    assert problem.code == code
    assert found in problem.found


@pytest.mark.parametrize(
    "text", ["Connection closed by peer", "CUDA error: an illegal memory access was encountered"]
)
def test_what_may_follow_from_another_rank_or_be_a_bug_is_no_problem_of_this_one(text):
    """A problem would keep it from being restarted."""
    assert problem_of(RuntimeError(text)) is None
    assert problem_of(ValueError("CUDA out of memory")) is None


@pytest.mark.parametrize("chained", [False, True])
def test_a_package_that_fails_while_it_is_imported_is_named(tmp_path, monkeypatch, chained):
    site = tmp_path / "site-packages"
    (site / "shaky").mkdir(parents=True)
    (site / "shaky" / "__init__.py").write_text("import json\nraise OSError('libGL.so.1: cannot open')")
    monkeypatch.syspath_prepend(str(site))
    try:
        try:
            import shaky  # type: ignore[import-not-found]  # noqa: F401
        except OSError as cause:
            if chained:
                raise RuntimeError("Failed to import another.module") from cause
            raise
    except (OSError, RuntimeError) as error:
        problem = problem_of(error)
    assert problem
    assert (problem.code, problem.subject) == (69, "Python packages")
    assert problem.found.startswith("shaky is installed, but cannot be imported (")
    assert "libGL.so.1: cannot open" in problem.found
