"""Texts as PyTorch, CUDA, cuBLAS, cuDNN, NCCL, gloo and Linux write them, and what each means."""

# ruff: noqa: E501 - the texts as they come

import mmap
from pathlib import Path

import pytest
import torch

from sdjob import failure_patterns
from sdjob.failure_patterns import DEVICE_MEMORY, HOST_MEMORY

ASYNC = "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect."
COUNT = "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that might have already set an error? "
NCCL = "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:77, "
WORKER = "DataLoader worker (pid 4711) is killed by signal: "
TEXTS = [
    (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
        71,
        DEVICE_MEMORY,
    ),
    ("CUDA error: out of memory" + ASYNC, 71, DEVICE_MEMORY),
    ("CUDA driver error: out of memory", 71, DEVICE_MEMORY),
    ("HIP out of memory. Tried to allocate 20.00 MiB", 71, DEVICE_MEMORY),
    ("NPU out of memory. Tried to allocate 20.00 MiB (NPU 0; 32.00 GiB total capacity)", 71, DEVICE_MEMORY),
    ("MPS backend out of memory (MPS allocated: 9.05 GiB)", 71, DEVICE_MEMORY),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 71, DEVICE_MEMORY),
    ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", 71, DEVICE_MEMORY),
    ("terminate called after throwing an instance of 'c10::OutOfMemoryError'", 71, DEVICE_MEMORY),
    (
        NCCL + "unhandled cuda error, NCCL version 2.27.3\nLast error:\nCuda failure 2 'out of memory'",
        71,
        DEVICE_MEMORY,
    ),
    ("node:1:2 [0] include/alloc.h:228 NCCL WARN Cuda failure 'out of memory'", 71, DEVICE_MEMORY),
    (
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nFailed to CUDA calloc async 608 bytes",
        71,
        DEVICE_MEMORY,
    ),
    (
        "RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        71,
        DEVICE_MEMORY,
    ),
    ("RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED", 71, HOST_MEMORY),
    ("node:1:2 [0] include/alloc.h:159 NCCL WARN Failed to CUDA host alloc 9637888 bytes", 71, HOST_MEMORY),
    ("node:1:2 [0] include/alloc.h:493 NCCL WARN Failed to CUDA calloc 608 bytes", 71, DEVICE_MEMORY),
    (
        "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)",
        71,
        HOST_MEMORY,
    ),
    ("OSError: [Errno 12] Cannot allocate memory", 71, HOST_MEMORY),
    ("terminate called after throwing an instance of 'std::bad_alloc'", 71, HOST_MEMORY),
    ("MemoryError", 71, HOST_MEMORY),
    (
        WORKER
        + "Bus error. It is possible that dataloader's workers are out of shared memory. Please try to raise your shared memory limit.",
        69,
        "/dev/shm",
    ),
    (
        "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm).",
        69,
        "/dev/shm",
    ),
    ("unable to write to file </torch_4711_123_0>: No space left on device (28)", 69, "/dev/shm"),
    (
        "unable to allocate shared memory(shm) for file </torch_4711_1>: Resource temporarily unavailable (11)",
        69,
        "/dev/shm",
    ),
    (
        "unable to mmap 67108864 bytes from file </torch_4711_1>: Cannot allocate memory (12)",
        69,
        "/dev/shm",
    ),
    (
        "NCCL WARN Error while creating shared memory segment /dev/shm/nccl-Vtrmxh (size 9637888)",
        69,
        "/dev/shm",
    ),
    ("CUDA error: no kernel image is available for execution on the device" + ASYNC, 69, "device"),
    ("CUDA error: device kernel image is invalid", 69, "device"),
    ("RuntimeError: cuDNN error: CUDNN_STATUS_NOT_SUPPORTED_ARCH_MISMATCH", 69, "device"),
    ("CUDA driver initialization failed, you might not have a CUDA gpu.", 69, "device"),
    (
        "CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env variable CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero.",
        69,
        "device",
    ),
    (
        NCCL
        + "invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.27.3\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\nDuplicate GPU detected : rank 2 and rank 0 both on CUDA device 27000",
        69,
        "NPROC_PER_NODE",
    ),
    ("CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error", 69, "device"),
    ("CUDA error: the launch timed out and was terminated" + ASYNC, 69, "device"),
    (
        "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver",
        69,
        "device",
    ),
    ("CUDA error: CUDA driver version is insufficient for CUDA runtime version", 69, "device"),
    (COUNT + "Error 803: system has unsupported display driver / cuda driver combination", 69, "device"),
    (COUNT + "Error 804: forward compatibility was attempted on non supported HW", 69, "device"),
    ("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU", 69, "device"),
    ("No CUDA GPUs are available", 69, "device"),
    (COUNT + "Error 802: system not yet initialized", 69, "device"),
    ("NCCL WARN Cuda failure 802 'system not yet initialized'", 69, "device"),
    ("CUDA error: all CUDA-capable devices are busy or unavailable", 69, "device"),
    ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", 69, "device"),
    ("CUDA error: uncorrectable ECC error encountered" + ASYNC, 69, "device"),
    ("CUDA error: uncorrectable NVLink error detected during the execution", 69, "device"),
    ("NVRM: Xid (PCI:0000:3b:00): 79, pid=4711, GPU has fallen off the bus.", 69, "device"),
    ("CUDA error: unspecified launch failure" + ASYNC, 69, "device"),
    ("NCCL WARN Cuda failure 719 'unspecified launch failure'", 69, "device"),
    ("CUDA error: hardware stack error", 69, "device"),
    ("CUDA error: an illegal memory access was encountered" + ASYNC, 70, "device"),
    ("CUDA error: device-side assert triggered", 70, "device"),
    (
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=42, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600010 milliseconds before timing out.",
        70,
        "network",
    ),
    (
        NCCL
        + "unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.3\nncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.",
        70,
        "network",
    ),
    (
        NCCL
        + "remote process exited or there was a network error, NCCL version 2.27.3\nncclRemoteError: A call failed",
        70,
        "network",
    ),
    (
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:45113",
        70,
        "network",
    ),
    (
        "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete",
        70,
        "network",
    ),
    (
        "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.",
        70,
        "network",
    ),
    (
        "[PG ID 0 PG GUID 0(default_pg) Rank 1] ProcessGroupNCCL's watchdog got stuck for 480 seconds without making progress in monitoring enqueued collectives.",
        70,
        "network",
    ),
    ("Application timeout caused pair closure", 70, "network"),
    (
        "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
        70,
        "network",
    ),
    ("Timed out after 601 seconds waiting for clients. 1/2 clients joined.", 70, "network"),
    (
        "The client socket has timed out after 600000ms while trying to connect to (node-0, 29400).",
        70,
        "network",
    ),
    (WORKER + "Killed. ", 70, "dataloader_num_workers"),
    ("DataLoader worker (pid(s) 4711, 4712) exited unexpectedly", 70, "dataloader_num_workers"),
    ("OSError: [Errno 28] No space left on device: '/output/checkpoint/x'", 73, "OUTPUT_DIR"),
    ("OSError: [Errno 122] Disk quota exceeded", 73, "OUTPUT_DIR"),
]


@pytest.mark.parametrize(("text", "code", "subject"), TEXTS)
def test_a_text_names_its_failure(text, code, subject):
    known = failure_patterns.find(text)
    assert known
    assert (known.code, known.subject) == (code, subject)
    assert known.line(text) in text.splitlines() or known.line(text) == text.strip()
    assert known.remedy.endswith(".")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "step   12/400  loss 0.1",
        "KeyError: 'mid_block'",
        "RuntimeError: The size of tensor a (4) must match the size of tensor b (9)",
        "a photo of a memory error in a museum",
        "NCCL version 2.27.3+cuda12.9",
        "Killed",
    ],
)
def test_other_texts_name_none(text):
    assert failure_patterns.find(text) is None


def test_remedies_say_what_to_set():
    remedies = {text: known.remedy for text, *_ in TEXTS if (known := failure_patterns.find(text))}
    assert "--shm-size" in next(remedy for text, remedy in remedies.items() if "Bus error" in text)
    assert "nvidia-fabricmanager" in remedies[COUNT + "Error 802: system not yet initialized"]


@pytest.mark.parametrize(
    ("library", "text"),
    [
        ("libc10.so", "DefaultCPUAllocator: can't allocate memory"),
        ("libtorch_cpu.so", "Connection closed by peer "),
        ("libtorch_cpu.so", "Timed out waiting "),
        ("libtorch_cpu.so", "Application timeout caused pair closure"),
        ("libtorch_cpu.so", "Connection was likely closed. Did the remote server"),
        ("libtorch_cpu.so", "The client socket has timed out after"),
        ("libtorch_cpu.so", "failed to connect/validate to host"),
        ("libtorch_cpu.so", "connectFullMesh failed"),
        ("libtorch_cpu.so", "seconds waiting for clients"),
        ("libtorch_cpu.so", "timed out in monitoredBarrier"),
        ("libtorch_cpu.so", "unable to write to file <"),
        ("libtorch_cpu.so", " bytes from file <"),
        ("libtorch_cpu.so", "unable to open shared memory"),
        ("libtorch_cpu.so", "unable to allocate shared memory"),
        ("libtorch_python.so", "Unexpected bus error encountered in worker"),
        ("libtorch_python.so", "is killed by signal: "),
    ],
)
def test_the_installed_torch_has_the_texts_that_are_searched_for(library, text):
    path = Path(torch.__file__).parent / "lib" / library
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        assert content.find(text.encode()) >= 0
