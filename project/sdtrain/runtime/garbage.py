"""Python's garbage collector, during the imports."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def ignored_until_imported(package: str) -> Iterator[None]:
    """Collect nothing while the body imports a package, and never look at what came into being until then.

    PyTorch, diffusers and transformers make a million objects that stay to the end. To look at them over and over
    takes a quarter of the time of their imports, and would hold up a step now and then. Reference cycles that are
    garbage by then stay in memory too; so this does nothing where the package is imported already, as in a second
    run of one process.
    """
    if package in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
