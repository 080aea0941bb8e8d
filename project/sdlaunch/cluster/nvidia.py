"""Which NVIDIA devices a job can use: what the driver lists, CUDA_VISIBLE_DEVICES, and the build of PyTorch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sdjob.formatting import counted, in_units
from sdjob.problems import Problem, no_hardware
from sdlaunch.cluster.nvml import FABRIC_IN_PROGRESS, Driver, Unit

VISIBLE = "CUDA_VISIBLE_DEVICES"
ON_CPU = "or train on the CPU with device=cpu"
_FIRST_DRIVER = {12: "525", 13: "580"}  # by major version of CUDA; later drivers run all its builds
_SHARED = 0.75  # less free memory than this fraction: other programs use the device


@dataclass(frozen=True)
class Seen:
    """Devices that torch calls cuda, and what keeps a job from using them."""

    what: str  # such as "2 NVIDIA devices"
    count: int = 0
    bf16: bool | None = None
    memory: int | None = None
    problem: Problem | None = None
    optional: bool = False  # with a problem device=auto takes the CPU: hidden, or only a sign of a GPU
    vendor: str = "NVIDIA"
    doubt: str = ""  # why only torch can tell whether they can be used
    warnings: tuple[str, ...] = ()
    name: str | None = None  # of each device, where all have the same


@dataclass(frozen=True)
class TorchBuild:
    """The installed PyTorch, read without importing it."""

    version: str
    cuda: str | None
    hip: str | None


def torch_build() -> TorchBuild | None:
    """The constants of torch/version.py; None: not installed, or not readable."""
    spec = find_spec("torch")
    try:
        text = Path(spec.origin or "").with_name("version.py").read_text() if spec else ""
    except (OSError, ValueError):
        return None
    values = dict(re.findall(r"^(__version__|cuda|hip)\b[^=\n]*= *['\"]([^'\"]+)['\"]", text, re.MULTILINE))
    return (
        TorchBuild(values.get("__version__", ""), values.get("cuda"), values.get("hip")) if values else None
    )


def usable(driver: Driver, environ: Mapping[str, str], build: TorchBuild | None) -> Seen:
    """The devices that the driver lists and this build of PyTorch can use."""
    what = counted(len(driver.gpus), "NVIDIA device")
    chosen, problem, warnings = _chosen(driver.gpus, environ)
    if problem:
        return Seen(what, problem=problem, optional=environ[VISIBLE].strip() in ("", "-1"))
    if problem := unfit(what, "NVIDIA", build) or _too_old(driver, build) or _without_mig_device(chosen):
        return Seen(what, len(chosen), problem=problem)
    units = [unit.mig[0] if unit.mig else unit for unit in chosen]
    migs = [unit for unit in units if unit.is_mig]
    doubt = "some are in MIG mode" if migs and len(migs) < len(units) else ""
    if any(unit.fabric == FABRIC_IN_PROGRESS for unit in chosen):
        doubt = "the driver is still waiting for the fabric manager (Error 802: system not yet initialized)"
    if len(migs) > 1 and not doubt:
        warnings.append(
            f"{len(migs)} MIG devices: CUDA opens one per process, so that this job uses {_named(units[0])}"
        )
        units = units[:1]
    capabilities = [unit.capability for unit in units]
    return Seen(
        counted(len(units), "NVIDIA device") + _names(units),
        len(units),
        all(each >= (8, 0) for each in capabilities if each) if all(capabilities) else None,
        min((unit.total for unit in units if unit.total), default=None),
        doubt=doubt,
        warnings=(*warnings, *_in_use(units), *driver.failed),
        name=units[0].name if len({unit.name for unit in units}) == 1 else None,
    )


def unfit(what: str, vendor: str, build: TorchBuild | None) -> Problem | None:
    """The problem of a PyTorch that was built for other devices."""
    needed = "ROCm" if vendor == "AMD" else "CUDA"
    if build is None or (build.hip if vendor == "AMD" else build.cuda):
        return None
    made_for = "for ROCm" if build.hip else "for CUDA" if build.cuda else "without GPU support (a CPU build)"
    found = f"{what}, and the installed PyTorch {build.version} was built {made_for}"
    return no_hardware(
        "device", found, f"Install a {needed} build of PyTorch that fits the driver, {ON_CPU}."
    )


def _too_old(driver: Driver, build: TorchBuild | None) -> Problem | None:
    """A driver of an earlier major version of CUDA; within one, every driver runs every build."""
    if not (driver.cuda and build and build.cuda):
        return None
    major = int(re.match(r"\d*", build.cuda)[0] or 0)  # type: ignore[index]  # it always matches
    if driver.cuda[0] >= major:
        return None
    found = (
        f"driver {driver.version or 'of unknown version'} supports CUDA {driver.cuda[0]}.{driver.cuda[1]}, "
        f"and PyTorch {build.version} needs CUDA {build.cuda}: the driver is too old"
    )
    newer = f" to {_FIRST_DRIVER[major]} or newer" if major in _FIRST_DRIVER else ""
    remedy = f"Update the NVIDIA driver{newer}, install a PyTorch built for CUDA {driver.cuda[0]}, {ON_CPU}."
    return no_hardware("device", found, remedy)


def _without_mig_device(chosen: Sequence[Unit]) -> Problem | None:
    empty = [str(unit.index) for unit in chosen if unit.mig == ()]
    if not empty or len(empty) < len(chosen):
        return None
    found = f"GPU {', '.join(empty)} in MIG mode, without a MIG device"
    return no_hardware(
        "device", found, f"Create one (nvidia-smi mig -cgi … -C), or turn MIG mode off, {ON_CPU}."
    )


def _chosen(gpus: Sequence[Unit], environ: Mapping[str, str]) -> tuple[list[Unit], Problem | None, list[str]]:
    """(visible devices, why none is, warnings), as CUDA reads its variable: up to the first invalid entry."""
    listed = environ.get(VISIBLE)
    if listed is None:
        return list(gpus), None, []
    chosen: list[Unit] = []
    for entry in map(str.strip, listed.split(",")):
        unit = _unit(gpus, entry)
        if unit is None:
            break
        if unit in chosen:  # CUDA takes none then
            return [], _hidden(f"{listed!r} names {entry} twice", gpus), []
        chosen.append(unit)
    else:
        return chosen, None, []
    if chosen:
        ignored = f"{VISIBLE}={listed!r}: {entry!r} is not a device here; CUDA ignores it and what follows"
        return chosen, None, [ignored]
    if listed.strip() in ("", "-1"):
        found = f"{listed!r} hides {'all ' if len(gpus) > 1 else ''}{counted(len(gpus), 'NVIDIA device')}"
    else:
        found = f"{listed!r} names {entry!r}, which is not a device here"
    return [], _hidden(found, gpus), []


def _unit(gpus: Sequence[Unit], entry: str) -> Unit | None:
    """The device that an entry names: an index, or the start of the UUID of a GPU or a MIG device."""
    if number := re.match(r"[0-9]{1,9}", entry):
        return next((gpu for gpu in gpus if gpu.index == int(number[0])), None)
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    units = [*gpus, *(mig for gpu in gpus for mig in gpu.mig or ())]
    return next((unit for unit in units if unit.uuid and unit.uuid.startswith(entry)), None)


def _hidden(found: str, gpus: Sequence[Unit]) -> Problem:
    indices = ", ".join(str(gpu.index) for gpu in gpus)
    remedy = f"Unset {VISIBLE}, or name devices that are here ({indices}), {ON_CPU}."
    return no_hardware(VISIBLE, found, remedy)


def _in_use(units: Sequence[Unit]) -> list[str]:
    return [
        f"{_named(unit)} has {in_units(unit.free)} of {in_units(unit.total)} free: other programs use the rest"
        for unit in units
        if unit.total and unit.free is not None and unit.free < _SHARED * unit.total
    ]


def _named(unit: Unit) -> str:
    return f"{'MIG device' if unit.is_mig else 'GPU'} {unit.index}{f' ({unit.name})' if unit.name else ''}"


def _names(units: Sequence[Unit]) -> str:
    names = dict.fromkeys(unit.name for unit in units if unit.name)
    return f" ({', '.join(names)})" if names else ""
