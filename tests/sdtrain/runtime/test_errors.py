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
