import gc
import weakref
from collections.abc import Iterator

import pytest

from sdtrain.runtime import garbage


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


class _Cycle:
    def __init__(self) -> None:
        self.me = self


def test_nothing_is_collected_meanwhile_and_what_was_made_is_never_looked_at():
    with garbage.ignored_until_imported("a package that is not imported"):
        gone = weakref.ref(_Cycle())
        for _ in range(10 * gc.get_threshold()[0]):
            _Cycle()
        assert gone() is not None
    gc.collect()
    assert gone() is not None


def test_it_collects_again_afterwards():
    with pytest.raises(KeyError), garbage.ignored_until_imported("a package that is not imported"):
        raise KeyError
    assert gc.isenabled()
    later = weakref.ref(_Cycle())
    gc.collect()
    assert later() is None


def test_it_stays_off_where_it_was_off():
    gc.disable()
    try:
        with garbage.ignored_until_imported("a package that is not imported"):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_an_earlier_run_in_the_process_left_is_still_collected():
    gone = weakref.ref(_Cycle())
    with garbage.ignored_until_imported("pytest"):
        assert gc.isenabled()
    gc.collect()
    assert gone() is None
