"""What the machine must offer, how much will be written, and mounts that never answer."""

import errno
import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest

from sdjob.model.pipeline import find_pipeline
from sdjob.output.layout import StepFolder
from sdjob.settings.run_spec import RunSpec
from sdlaunch.cluster import devices
from sdlaunch.cluster.devices import Devices
from sdlaunch.cluster.resolve import Cluster
from sdlaunch.preflight import disk_space, system_limits
from sdlaunch.preflight.timeouts import NoAnswer, Task
from tests.sdjob.model.test_pipeline import UNET, write
from tests.sdlaunch.place import launch
from tests.sdlaunch.test_plan import found, prepare


def spec(**values) -> RunSpec:
    return RunSpec(pretrained_model_name_or_path="m", output_dir="o", **values)


ONE_NODE = Cluster(1, 0, None, 2)


# --- mounts that never answer ------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["check", "run"])
@pytest.mark.parametrize(
    ("file", "variable", "folder"),
    [
        ("model/tiny/model_index.json", "MODEL_DIR", "model"),
        ("dataset/images/0.png", "DATASET_DIR", "dataset/images"),
    ],
)
def test_a_mount_that_hangs_is_reported_and_not_waited_for(place, tmp_path, verb, file, variable, folder):
    """A pipe that nobody writes to blocks its reader forever, as a network share does whose server is gone."""
    (tmp_path / file).unlink()
    os.mkfifo(tmp_path / file)
    begin = time.monotonic()
    done = launch(verb, **place, check_timeout="1")
    assert time.monotonic() - begin < 20
    assert done.returncode == 66
    text = done.stdout + done.stderr
    assert f"{variable}: {tmp_path / folder} did not answer within 1 s" in text
    assert "Traceback" not in text


def test_captions_that_hang_are_reported_as_well(place, tmp_path):
    for number in range(5):
        os.mkfifo(tmp_path / f"dataset/images/{number}.txt")
    begin = time.monotonic()
    job = prepare(place, recipe="text_to_image", check_timeout="0.5")
    assert found(job) == [("DATASET_DIR", 66)]
    assert time.monotonic() - begin < 10


def test_an_output_folder_that_hangs_is_73(place, monkeypatch):
    from sdlaunch.preflight import checks

    monkeypatch.setattr(checks, "_write_probe", lambda probe: time.sleep(60))
    begin = time.monotonic()
    job = prepare(place, check_timeout="0.5")
    assert found(job) == [("OUTPUT_DIR", 73)]
    assert time.monotonic() - begin < 10


def test_an_output_folder_where_checkpoints_could_not_be_put_in_place_is_73(place, monkeypatch):
    """As with some mounts of object stores, which know files but no folders."""
    output = Path(place["OUTPUT_DIR"])
    output.mkdir()

    def rename(self, target):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(Path, "rename", rename)
    job = prepare(place)
    assert found(job) == [("OUTPUT_DIR", 73)]
    assert "a folder with files cannot be renamed there (Function not implemented)" in job.problems[0].found
    assert not list(output.iterdir())


def test_a_task_gives_its_result_or_its_error_or_nothing_in_time():
    until = time.monotonic() + 5
    assert Task(lambda: 7).result(until) == 7
    with pytest.raises(ZeroDivisionError):
        Task(lambda: 1 / 0).result(until)
    with pytest.raises(NoAnswer):
        Task(lambda: time.sleep(5)).result(time.monotonic() + 0.05)


# --- limits ------------------------------------------------------------------------------------------


@pytest.fixture
def tmpfs(tmp_path):
    """tmpfs(size): a small file system of its own."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"tmpfs-{size}"
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(["mount", *options], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_shared_memory_is_compared_with_what_the_loaders_put_there(tmpfs):
    shm = tmpfs("64m")
    assert system_limits.shared_memory(spec(), ONE_NODE, shm) == []
    (problem,) = system_limits.shared_memory(spec(train_batch_size=8), ONE_NODE, shm)
    assert (problem.code, problem.subject) == (69, str(shm))
    # 2 processes × (2 loaders × 2 + 1) × 8 images of 3 × 512² fp32 numbers
    assert "67.1 MB free, 252 MB needed" in problem.found
    assert "--shm-size" in problem.remedy
    assert (
        system_limits.shared_memory(spec(train_batch_size=8, dataloader_num_workers=0), ONE_NODE, shm) == []
    )


def test_the_limit_of_open_files():
    assert system_limits.open_files(spec(), ONE_NODE, 1024) == []
    (problem,) = system_limits.open_files(spec(dataloader_num_workers=64), ONE_NODE, 1024)
    assert problem.code == 69
    assert "ulimit -n 4096" in problem.remedy
    assert system_limits.open_files(spec(dataloader_num_workers=64), ONE_NODE, -1) == []


def test_the_port_of_the_rendezvous_must_be_free_on_node_0_only(place):
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        nodes = {"NNODES": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        assert found(prepare(place, **nodes, NODE_RANK="0")) == [("MASTER_PORT", 69)]
        assert found(prepare(place, **nodes, NODE_RANK="1")) == []
    assert found(prepare(place, **nodes, NODE_RANK="0")) == []


# --- space -------------------------------------------------------------------------------------------


def test_a_small_volume_is_refused_with_the_arithmetic(place, tmpfs):
    """On the real volume, whatever the parents of the output folder have."""
    output = tmpfs("1m") / "deep" / "output"
    many = {"OUTPUT_DIR": str(output), "checkpointing_steps": "1", "num_train_step": "400"}
    (problem,) = prepare(place, **many).problems
    assert (problem.code, problem.subject) == (73, "OUTPUT_DIR")
    assert re.match(r"1\.0[45] MB free", problem.found)  # the probe of another check may lie there meanwhile
    assert "400 checkpoints of 161 kB" in problem.found  # 13,444 parameters × 4 bytes × (weights + 2 moments)
    assert prepare(place, **many, checkpoints_total_limit="3").problems == ()
    assert not output.parent.exists()


def test_a_full_volume_is_73(place, tmpfs):
    volume = tmpfs("64k")
    (volume / "filler").write_bytes(bytes(65536))
    assert {code for _, code in found(prepare(place, OUTPUT_DIR=str(volume)))} == {73}


def step(number: int, defect: str | None = None) -> StepFolder:
    return StepFolder(number, Path(f"checkpoint-{number:06d}"), defect)


@pytest.mark.parametrize(
    ("settings", "existing", "more"),
    [
        ({}, [], 4),
        ({"max_train_steps": 401}, [], 5),  # the last step leaves one too
        ({}, [step(100), step(200)], 2),  # those that the run goes on from are there already
        ({}, [step(100), step(200, "broken")], 3),
        ({}, [step(250)], 2),  # left by a stop
        ({}, [step(400)], 0),
        ({"resume": "never"}, [step(200)], 4),  # kept beside, so no room is won
        ({"checkpoints_total_limit": 2}, [], 3),  # the new one is whole before the oldest goes
        ({"checkpoints_total_limit": 2}, [step(100), step(200)], 1),
        ({"checkpoints_total_limit": 2}, [step(100)], 2),
        ({"checkpoints_total_limit": 2}, [step(400)], 0),
    ],
)
def test_checkpoints_to_come_beside_those_that_are_there(settings, existing, more):
    job = spec(**{"max_train_steps": 400, "checkpointing_steps": 100} | settings)
    assert disk_space.more_at_once(job, existing) == more


def test_the_size_of_a_lora_comes_from_the_shapes(place, tmp_path):
    unet = {
        "down.attn.to_k.weight": {"dtype": "F32", "shape": [8, 32], "data_offsets": [0, 1024]},
        "down.attn.to_k.bias": {"dtype": "F32", "shape": [8], "data_offsets": [1024, 1056]},
        "down.conv.weight": {"dtype": "F32", "shape": [4, 4, 3, 3], "data_offsets": [1056, 1632]},
    }
    model = tmp_path / "model" / "tiny"
    write(model / UNET, _file(unet))
    pipeline = find_pipeline(model, None, allow_pickle=False)
    lora = disk_space.sizes(spec(lora_rank=4), pipeline)
    assert lora == disk_space.Sizes(
        checkpoint=3 * 4 * 4 * (8 + 32), result=2 * 4 * 4 * (8 + 32)
    )  # two layouts
    half = disk_space.sizes(spec(lora_rank=4, export_dtype="fp16"), pipeline)
    assert half and half.result == 2 * 2 * 4 * (8 + 32)
    whole = disk_space.sizes(spec(), pipeline)
    both = disk_space.sizes(spec(export_single_file=True), pipeline)
    assert whole and both and both.result == 2 * whole.result
    with_conv = spec(lora_rank=4, use_ema=True, lora_target_modules=("conv",))
    both = disk_space.sizes(with_conv, pipeline)
    assert both and both.checkpoint == 4 * 4 * 4 * (4 + 4 * 9)


def _file(tensors) -> bytes:

    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + bytes(max(t["data_offsets"][1] for t in tensors.values()))


# --- memory ------------------------------------------------------------------------------------------


def with_devices(monkeypatch, memory: int | None, kind: str = "cuda", count: int = 1) -> None:
    there = Devices(kind, count, 8, "", bf16=True, memory=memory)
    monkeypatch.setattr(devices, "find", lambda *_: there)


def test_a_device_that_is_too_small_is_69_with_settings_that_fit(place, monkeypatch):
    with_devices(monkeypatch, 600_000_000)
    (problem,) = prepare(place, device="", batch_size="8").problems
    assert (problem.code, problem.subject) == (69, "memory")
    assert "at least 818 MB needed on each cuda device" in problem.found
    assert "activations 818 MB" in problem.found and "600 MB there" in problem.found
    assert "gradient_checkpointing=1; batch_size=4 gradient_accumulation_steps=2" in problem.remedy
    assert prepare(place, device="", batch_size="4").problems == ()


def test_a_device_that_is_hardly_large_enough_is_a_warning(place, monkeypatch):
    with_devices(monkeypatch, 880_000_000)
    job = prepare(place, device="", batch_size="8")
    assert job.problems == ()
    (warning,) = [text for text in job.warnings if text.startswith("memory: ")]
    assert "it may not be enough" in warning
    with_devices(monkeypatch, 2_000_000_000)
    assert not [text for text in prepare(place, device="", batch_size="8").warnings if "memory" in text]


def test_processes_on_a_cpu_share_the_memory_of_the_host(place, monkeypatch):
    with_devices(monkeypatch, 600_000_000, kind="cpu", count=8)
    assert prepare(place, batch_size="2").problems == ()
    (problem,) = prepare(place, batch_size="2", NPROC_PER_NODE="4").problems
    assert problem.code == 69
    assert "of the host for each process" in problem.found and "150 MB there" in problem.found


def test_what_is_not_known_is_not_refused(place, monkeypatch):
    with_devices(monkeypatch, None)
    job = prepare(place, device="", batch_size="4096", dataloader_num_workers="0")
    assert job.problems == ()
    assert any(line.startswith("memory: at least 419 GB a process: ") for line in job.arithmetic)


def test_a_failure_for_memory_names_settings_that_need_clearly_less(place):
    """The sums said that it would fit: what is advised must lie well below them."""
    settings = prepare(place, batch_size="8").lighter()
    assert settings[:2] == ["gradient_checkpointing=1", "batch_size=4 gradient_accumulation_steps=2"]
