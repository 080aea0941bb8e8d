"""A replacement of NVIDIA's driver library: the same functions and ctypes arguments, on GPUs that a test describes."""

from sdlaunch.cluster import nvml

GIB = 2**30


def gpu(index=0, **facts):
    """A GPU as the driver lists it; `mig`: the names and UUIDs of its MIG devices; a fact of None: not supported."""
    defaults = {
        "name": "H100",
        "uuid": f"GPU-{index}abc",
        "capability": (9, 0),
        "total": 80 * GIB,
        "free": 79 * GIB,
    }
    return {**defaults, "mig": None, "fabric": 0, "error": 0, **facts}


def _function(method):
    """A function, because it accepts attributes such as restype."""
    return lambda *arguments: method(*arguments) or 0


# A function of NVML → a method of Library.
FUNCTIONS = {
    "nvmlInit_v2": "init",
    "nvmlShutdown": "shutdown",
    "nvmlErrorString": "error_string",
    "nvmlSystemGetDriverVersion": "system_get_driver_version",
    "nvmlSystemGetCudaDriverVersion_v2": "system_get_cuda_driver_version",
    "nvmlDeviceGetCount_v2": "device_get_count",
    "nvmlDeviceGetHandleByIndex_v2": "device_get_handle_by_index",
    "nvmlDeviceGetName": "device_get_name",
    "nvmlDeviceGetUUID": "device_get_uuid",
    "nvmlDeviceGetCudaComputeCapability": "device_get_cuda_compute_capability",
    "nvmlDeviceGetMemoryInfo": "device_get_memory_info",
    "nvmlDeviceGetMigMode": "device_get_mig_mode",
    "nvmlDeviceGetMaxMigDeviceCount": "device_get_max_mig_device_count",
    "nvmlDeviceGetMigDeviceHandleByIndex": "device_get_mig_device_handle_by_index",
    "nvmlDeviceGetGpuFabricInfo": "device_get_gpu_fabric_info",
}


class Library:
    """`load` of nvml.query; the handle of a GPU is its index + 1, that of a MIG device 100 more for each."""

    def __init__(self, *gpus, version="580.65", cuda=13000, init=0, without=()):
        self._gpus, self._version, self._cuda, self._init = gpus, version, cuda, init
        self.closed = False
        for function, method in FUNCTIONS.items():
            if function not in without:
                setattr(self, function, _function(getattr(self, method)))

    def __call__(self, name):
        assert name == nvml.LIBRARY
        return self

    def _at(self, handle):
        found = self._gpus[(handle.value - 1) % 100]
        return found if handle.value < 100 else {**found, **found["mig"][handle.value // 100 - 1]}

    def init(self):
        return self._init

    def shutdown(self):
        self.closed = True

    def error_string(self, code):
        return b"Driver Not Loaded" if code == 9 else b"GPU is lost"

    def system_get_driver_version(self, buffer, length):
        buffer.value = self._version.encode()

    def system_get_cuda_driver_version(self, result):
        result._obj.value = self._cuda

    def device_get_count(self, result):
        result._obj.value = len(self._gpus)

    def device_get_handle_by_index(self, index, result):
        result._obj.value = index.value + 1
        return self._gpus[index.value]["error"]

    def device_get_name(self, handle, buffer, length):
        return self._string(handle, "name", buffer)

    def device_get_uuid(self, handle, buffer, length):
        return self._string(handle, "uuid", buffer)

    def _string(self, handle, fact, buffer):
        text = self._at(handle)[fact]
        buffer.value = (text or "").encode()
        return 3 if text is None else 0

    def device_get_cuda_compute_capability(self, handle, major, minor):
        if (capability := self._at(handle)["capability"]) is None:
            return 3
        major._obj.value, minor._obj.value = capability
        return 0

    def device_get_memory_info(self, handle, result):
        facts = self._at(handle)
        if facts["total"] is None:
            return 3
        result._obj.total, result._obj.free = facts["total"], facts["free"]
        return 0

    def device_get_mig_mode(self, handle, current, pending):
        current._obj.value = int(self._at(handle)["mig"] is not None)

    def device_get_max_mig_device_count(self, handle, result):
        result._obj.value = 7

    def device_get_mig_device_handle_by_index(self, handle, index, result):
        result._obj.value = handle.value + 100 * (index.value + 1)
        return 0 if index.value < len(self._at(handle)["mig"]) else 6

    def device_get_gpu_fabric_info(self, handle, result):
        result._obj.state = self._at(handle)["fabric"]
