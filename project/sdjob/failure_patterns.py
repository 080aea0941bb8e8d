"""Failures as their texts tell them: what PyTorch, CUDA, NCCL and the system say, and what to do.

One table for the worker, which searches its exceptions, and the launcher, which searches the log of a rank that could
not report. The first pattern that matches decides, so that the narrower ones come first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdjob.exit_codes import ExitCode


@dataclass(frozen=True)
class FailurePattern:
    """A failure that its text names: its exit code, subject and cause in plain words, and the remedy."""

    code: ExitCode
    subject: str
    cause: str
    remedy: str
    pattern: re.Pattern[str]

    def line(self, text: str) -> str:
        """The first line of a text that tells of this failure."""
        return next((line.strip() for line in text.splitlines() if self.pattern.search(line)), "")


HOST_MEMORY = "host memory"
DEVICE_MEMORY = "device memory"


def find(text: str) -> FailurePattern | None:
    """The failure that this text of an exception or a log tells of."""
    return next((each for each in PATTERNS if each.pattern.search(text)), None)


def _row(code: ExitCode, subject: str, cause: str, remedy: str, *texts: str) -> FailurePattern:
    return FailurePattern(code, subject, cause, remedy, re.compile("|".join(texts)))


_ERROR = r"(?:CUDA|HIP)(?: driver)? error: "  # as PyTorch begins
_CUDA = rf"(?:{_ERROR}|[Cc]uda failure (?:\d+ )?'|Error \d+: )"  # NCCL, and torch.cuda while it starts

PATTERNS = (
    _row(
        ExitCode.NO_HARDWARE,
        "/dev/shm",
        "shared memory is full or too small",
        "Give the container more shared memory (--shm-size=8g), or set dataloader_num_workers=0.",
        r"[Uu]nexpected bus error encountered in worker",
        r"killed by signal: Bus error",
        r"unable to (?:allocate|open) shared memory",
        r"unable to (?:write to|mmap \d+ bytes from) file </torch_",
        r"(?:shared memory segment|No space left on device).*/dev/shm",
        r"/dev/shm.*No space left on device",
    ),
    _row(
        ExitCode.OUT_OF_MEMORY,
        DEVICE_MEMORY,
        "the device has too little for this run",
        "Lower batch_size and raise gradient_accumulation_steps, set gradient_checkpointing=1, "
        "lower resolution, or train a LoRA (lora_rank=8).",
        rf"{_CUDA}out of memory",
        r"(?:CUDA|HIP|NPU|XPU|MUSA|MLU|MPS backend) out of memory",
        r"OutOfMemoryError",
        r"CU(?:BLAS|DNN|SPARSE|SOLVER)_STATUS_ALLOC_FAILED|HIPBLAS_STATUS_ALLOC_FAILED",
        r"CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",  # from cuDNN 9 on
        r"Failed to CUDA (?:calloc|malloc)",
    ),
    _row(
        ExitCode.NO_HARDWARE,
        "processes",
        "no more processes or threads can be started",
        "Raise the limit of the container or the user (--pids-limit, ulimit -u), or use fewer dataloader_num_workers "
        "or processes (NPROC_PER_NODE).",
        r"can't start new thread",
        r"pthread_create failed",
        r"fork: (?:retry: )?Resource temporarily unavailable",
    ),
    _row(
        ExitCode.OUT_OF_MEMORY,
        HOST_MEMORY,
        "the host or the container has too little for this run",
        "Give the container more memory, or use fewer dataloader_num_workers or processes (NPROC_PER_NODE), "
        "and on a CPU a smaller batch_size.",
        r"can't allocate memory",
        r"Cannot allocate memory",
        r"std::bad_alloc",
        r"\bMemoryError\b",
        r"CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        r"Failed to CUDA host alloc",  # pinned memory
    ),
    _row(
        ExitCode.NO_HARDWARE,
        "device",
        "PyTorch has no code for this GPU",
        "Install a build of PyTorch for this GPU (its compute capability must be in torch.cuda.get_arch_list()), "
        "or use another GPU.",
        r"no kernel image is available",
        r"device kernel image is invalid",
        r"(?:CUDNN|CUBLAS)_STATUS_(?:NOT_SUPPORTED_)?ARCH_MISMATCH",
    ),
    _row(
        ExitCode.NO_HARDWARE,
        "device",
        "the NVIDIA driver does not fit this build of PyTorch",
        "Update the driver of the machine, or install a build of PyTorch for an older CUDA version.",
        r"NVIDIA driver on your system is too old",
        r"CUDA driver version is insufficient",
        r"unsupported display driver / cuda driver combination",
        r"forward compatibility was attempted on non supported HW",
    ),
    _row(
        ExitCode.NO_HARDWARE,
        "device",
        "the driver finds no GPU that can be used",
        "Start the container with its GPUs (--gpus all), and check CUDA_VISIBLE_DEVICES and nvidia-smi.",
        r"Found no NVIDIA driver",
        r"CUDA driver initialization failed|CUDA unknown error - this may be due to",
        r"No CUDA GPUs are available|no CUDA-capable device is detected",
        rf"{_CUDA}invalid device ordinal",
    ),
    _row(
        ExitCode.NO_HARDWARE,
        "device",
        "the fabric manager of this machine does not run (Error 802)",
        "Start nvidia-fabricmanager on the host, in the driver's version, or use another machine.",
        r"system not yet initialized",
    ),
    _row(
        ExitCode.NO_HARDWARE,
        "device",
        "another program keeps the GPU busy",
        "End the other program (nvidia-smi lists it), or set the compute mode of the GPU to default.",
        r"devices?(?:\(s\))? (?:is|are|is/are) busy or unavailable",
    ),
    _row(
        ExitCode.NO_HARDWARE,
        "NPROC_PER_NODE",
        "two ranks use the same GPU",
        "Set NPROC_PER_NODE to the number of GPUs of a node, and check CUDA_VISIBLE_DEVICES.",
        r"Duplicate GPU detected",
    ),
    _row(
        ExitCode.NO_HARDWARE,
        "device",
        "the GPU reports a fault of its hardware",
        "Look at nvidia-smi -q and the kernel log (dmesg: Xid) of the machine, reset or exclude this GPU, and start "
        "again: the run resumes.",
        r"uncorrectable (?:ECC|NVLink) error",
        r"\bXid\b.*\d",
        r"GPU is lost|fallen off the bus",
        r"hardware stack error|Invalid access of peer GPU memory over nvlink",
        rf"{_CUDA}(?:unspecified launch failure|unknown error|the launch timed out)",
    ),
    _row(
        ExitCode.TRAINING_FAILED,
        "device",
        "a GPU kernel failed",
        "Try another attention backend, and compile=off; with CUDA_LAUNCH_BLOCKING=1 the traceback names the kernel. "
        "If it happens on one machine only, its GPU is at fault.",
        r"an illegal memory access was encountered|misaligned address|device-side assert triggered",
    ),
    _row(
        ExitCode.TRAINING_FAILED,
        "network",
        "a rank waited too long for another, or lost the connection to it",
        "Look for the first error in the logs of all ranks and nodes: another rank may have ended or hung. If there is "
        "none, check the network between the nodes: NCCL_DEBUG=INFO shows the interfaces, NCCL_SOCKET_IFNAME and "
        "GLOO_SOCKET_IFNAME choose one. Start again to resume.",
        r"Watchdog caught collective operation timeout",
        r"watchdog got stuck for \d+ seconds|NCCL timeout in: ",
        r"nccl(?:System|Remote|Internal|UnhandledCuda)Error: |ncclInvalid(?:Usage|Argument): |NCCL error in: ",
        r"unhandled (?:system|cuda) error",
        r"Connection (?:closed by peer|reset by peer)|Connection was likely closed\. Did the remote server",
        r"Timed out waiting \d+ms for (?:recv|send) operation|Application timeout caused pair closure",
        r"client socket has timed out|failed to connect/validate to host|connectFullMesh failed",
        r"Timed out after \d+ seconds waiting for clients|timed out in monitoredBarrier",
        r"connection to the C10d store has failed",
    ),
    _row(
        ExitCode.TRAINING_FAILED,
        "dataloader_num_workers",
        "a process that loads images was killed",
        "Look at the memory of the host, or use fewer dataloader_num_workers. Start again to resume.",
        r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is killed by signal|exited unexpectedly)",
    ),
    _row(
        ExitCode.OUTPUT_FULL,
        "OUTPUT_DIR",
        "there is no space left",
        "Free some space, mount a larger volume, or keep fewer checkpoints (checkpoints_total_limit).",
        r"No space left on device|Disk quota exceeded",
    ),
)
