"""Colossal-AI beside a newer torch than it declares: the versions that are proven, and what they lack.

Colossal-AI 0.5.0 asks for torch 2.5 and pins a dozen packages that training does not use, so it is installed
without its dependencies (docker/requirements-colossal.txt). All that is then missing is two packages that
`colossalai.nn.optimizer` imports for optimizers that are not used here; empty modules stand in for them
while Colossal-AI is imported. Any other pair of versions is refused: it may well train, and train wrongly.
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

# Sets on which the tests of the strategies pass.
PROVEN = (("0.5.0", "2.13.0"), ("0.5.0", "2.10.0"))  # colossalai, torch

_UNUSED = {
    "bitsandbytes": ("bitsandbytes.optim", "bitsandbytes.optim.optimizer"),
    "galore_torch": (),
}
_UNUSED_CLASSES = {
    "bitsandbytes.optim.optimizer": ("Optimizer2State",),
    "galore_torch": ("GaLoreAdafactor", "GaLoreAdamW"),
}


def check_versions() -> None:
    """Raises JobError (69) unless the installed versions are proven."""
    try:
        found = version("colossalai"), version("torch").split("+")[0]
    except PackageNotFoundError:
        remedy = "pip install --no-deps --requirement docker/requirements-colossal.txt, or use plugin=fsdp."
        raise JobError(no_hardware("plugin", "the package colossalai is not installed", remedy)) from None
    if found not in PROVEN:
        sets = " or ".join("colossalai {} with torch {}".format(*pair) for pair in PROVEN)
        raise JobError(
            no_hardware(
                "plugin",
                f"colossalai {found[0]} with torch {found[1]}",
                f"Install what is proven ({sets}), or use plugin=fsdp.",
            )
        )


@contextmanager
def importable() -> Iterator[None]:
    """Inside, `import colossalai` works, and is silent about packages that nobody needs here."""
    check_versions()
    missing = [name for name in _UNUSED if name not in sys.modules and importlib.util.find_spec(name) is None]
    if missing:
        import peft  # noqa: F401  (looks for bitsandbytes itself, and must not find an empty module)
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
