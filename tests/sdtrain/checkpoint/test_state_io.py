"""Sharded checkpoints: their source is not trusted, so reading one runs no code."""

import io
import os
import pickle
from pathlib import PosixPath

import pytest

from sdtrain.checkpoint.state_io import _MetadataUnpickler


class Wicked:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_description_of_shards_that_names_anything_else_is_refused(tmp_path):
    path = tmp_path / "made"
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.mkdir"):
        _MetadataUnpickler(io.BytesIO(pickle.dumps(Wicked(path)))).load()
    assert not path.exists()
    pickle.loads(pickle.dumps(Wicked(path)))
    assert path.exists()  # so it would have been


def test_what_it_is_made_of_is_read():
    assert _MetadataUnpickler(io.BytesIO(pickle.dumps({"a": (1, PosixPath("/x"))}))).load() == {
        "a": (1, PosixPath("/x"))
    }
