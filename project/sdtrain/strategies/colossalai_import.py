"""Importing Colossal-AI next to a newer torch than it declares: tested versions, and stubs for unused packages.

Colossal-AI 0.5.0 asks for torch 2.5 and pins a dozen packages that training does not use, so it is installed
without its dependencies (docker/requirements-colossal.txt). Only two packages are then missing, which
`colossalai.nn.optimizer` imports for optimizers that are not used here; empty modules replace them while
Colossal-AI is imported. Any other pair of versions is refused: it might train, and train wrongly.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import torch

from sdjob.problems import JobError, no_hardware

# Pairs of versions with which the tests of the strategies pass.
TESTED = (("0.5.0", "2.13.0"), ("0.5.0", "2.10.0"))  # colossalai, torch

_UNUSED = {
    "bitsandbytes": ("bitsandbytes.optim", "bitsandbytes.optim.optimizer"),
    "galore_torch": (),
}
_UNUSED_CLASSES = {
    "bitsandbytes.optim.optimizer": ("Optimizer2State",),
    "galore_torch": ("GaLoreAdafactor", "GaLoreAdamW"),
}


def check_versions() -> None:
    """Raises JobError (69) unless the installed versions are tested ones."""
    try:
        installed = version("colossalai"), version("torch").split("+")[0]
    except PackageNotFoundError:
        remedy = "pip install --no-deps --requirement docker/requirements-colossal.txt, or use plugin=fsdp."
        raise JobError(no_hardware("plugin", "the package colossalai is not installed", remedy)) from None
    if installed not in TESTED:
        sets = " or ".join("colossalai {} with torch {}".format(*pair) for pair in TESTED)
        raise JobError(
            no_hardware(
                "plugin",
                "colossalai {} with torch {}".format(*installed),
                f"Install a tested pair of versions ({sets}), or use plugin=fsdp.",
            )
        )


@contextmanager
def importable() -> Iterator[None]:
    """Inside, `import colossalai` works, without warnings about packages that are not needed here."""
    check_versions()
    missing = [name for name in _UNUSED if name not in sys.modules and importlib.util.find_spec(name) is None]
    if missing:
        import peft  # noqa: F401  (looks for bitsandbytes, and must not find the empty module)
    names = [module for name in missing for module in (name, *_UNUSED[name])]
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = []
        for unused in _UNUSED_CLASSES.get(name, ()):
            setattr(module, unused, type(unused, (torch.optim.Optimizer,), {}))
        sys.modules[name] = module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in names:
            del sys.modules[name]
