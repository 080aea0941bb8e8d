"""Tests of what a job needs in memory and on disk against what is there, and of the arithmetic in a plan."""

import os
import re
from types import SimpleNamespace

import pytest

from sdjob.automatic import machine
from sdlaunch.cluster import devices
from sdlaunch.cluster.devices import Devices
from sdlaunch.preflight import estimates
from tests.sdlaunch.test_plan import prepare

LATENT = 8 * 256 * 256 * 4 + 4096  # 8 numbers for each of 256 × 256 places in fp32, and more than a header
ON_DISK = {"cache_latents": "disk", "center_crop": "1", "cache_text_embeddings": "disk"}
PRIOR = {"with_prior_preservation": "1", "class_prompt": "a", "num_class_images": "3"}


def caches_of(job) -> str:
    (line,) = [line for line in job.arithmetic if line.startswith("caches: ")]
    return line.removeprefix("caches: ")


@pytest.fixture
def free(monkeypatch):
    """Sets the free bytes of every disk."""

    def there(size: int) -> None:
        monkeypatch.setattr(estimates.shutil, "disk_usage", lambda _: SimpleNamespace(free=size))

    return there


def test_the_plan_counts_images_mirrored_ones_those_of_the_class_and_prompts(workspace):
    job = prepare(workspace, **ON_DISK, **PRIOR, random_flip="1")
    assert caches_of(job) == "16 latents × 2.1 MB = 33.6 MB on disk; 2 prompts × 1.42 kB = 2.85 kB on disk"
    job = prepare(workspace, **ON_DISK, validation_split="0.4")
    assert caches_of(job) == "3 latents × 2.1 MB = 6.29 MB on disk; 1 prompt × 1.42 kB = 1.42 kB on disk"
    given = {"cache_latents": "memory", "cache_text_embeddings": "no", "center_crop": "1", "resolution": "64"}
    job = prepare(workspace, **given, mixed_precision="bf16")
    assert caches_of(job) == "5 latents × 16.4 kB = 81.9 kB in the memory of each process"


def test_caches_need_room_on_the_volume_of_the_output_or_of_cache_dir(workspace, free, tmp_path):
    free(6 * LATENT)
    assert prepare(workspace, **ON_DISK, dataloader_num_workers="0").problems == ()
    free(5 * LATENT)
    (problem,) = prepare(workspace, **ON_DISK, dataloader_num_workers="0").problems
    assert (problem.code, problem.subject) == (73, "OUTPUT_DIR")
    assert (
        "1 checkpoint of 161 kB" in problem.found and "5 latents × 2.1 MB = 10.5 MB on disk" in problem.found
    )
    assert "leave cache_latents=no" in problem.remedy
    elsewhere = {"cache_dir": str(tmp_path / "cache"), "dataloader_num_workers": "0"}
    (problem,) = prepare(workspace, **ON_DISK, **elsewhere).problems
    assert (problem.code, problem.subject) == (73, "cache_dir")


def test_entries_that_are_there_need_no_room_again(workspace, free, tmp_path):
    folder = tmp_path / "output/cache/latents"
    folder.mkdir(parents=True)
    free(4 * LATENT)
    settings = {**ON_DISK, "dataloader_num_workers": "0"}
    assert prepare(workspace, **settings).code == 73
    (folder / "0.safetensors").write_bytes(bytes(2 * LATENT))
    assert prepare(workspace, **settings).problems == ()


def test_captions_that_may_all_differ_are_a_warning(workspace, free, tmp_path):
    for number in range(5):
        (tmp_path / f"dataset/images/{number}.txt").write_text("ab"[number % 2])
    settings = {
        "recipe": "text_to_image",
        "cache_text_embeddings": "disk",
        "max_token_length": "225",
        "dataloader_num_workers": "0",
    }
    assert caches_of(prepare(workspace, **settings)) == "up to 5 prompts × 3.89 kB = 19.4 kB on disk"
    free(0)
    (problem,) = prepare(workspace, **settings).problems
    wanted = re.search(r"free at .*, (\S+ \wB) needed", problem.found)
    assert wanted
    free(int(float(wanted[1].split()[0]) * 1000) + 8000)
    job = prepare(workspace, **settings)
    assert job.problems == ()
    assert any("up to 5 prompts × 3.89 kB = 19.4 kB on disk" in text for text in job.warnings)


def test_caches_in_memory_are_in_every_process(workspace, monkeypatch):
    settings = {"cache_latents": "memory", "center_crop": "1"}
    monkeypatch.setattr(machine, "host_memory", lambda: 19 * LATENT)
    problems = prepare(workspace, **settings, NPROC_PER_NODE="4").problems
    (problem,) = [problem for problem in problems if problem.subject == "cache_latents"]
    assert problem.code == 69
    assert "41.9 MB of the host's memory for 4 processes: 5 latents × 2.1 MB" in problem.found
    assert "cache_latents=disk" in problem.remedy
    two = prepare(workspace, **settings, NPROC_PER_NODE="2")
    assert "cache_latents" not in [problem.subject for problem in two.problems]


def test_a_small_volume_is_refused_with_the_arithmetic(workspace, tmpfs):
    """On the real volume, whatever the parents of the output folder have."""
    output = tmpfs("1m") / "deep" / "output"
    many = {"OUTPUT_DIR": str(output), "checkpointing_steps": "1", "num_train_step": "400"}
    (problem,) = prepare(workspace, **many).problems
    assert (problem.code, problem.subject) == (73, "OUTPUT_DIR")
    assert re.match(r"1\.0[45] MB free", problem.found)  # the probe of another check may be there meanwhile
    assert "400 checkpoints of 161 kB" in problem.found  # 13,444 parameters × 4 bytes × (weights + 2 moments)
    assert prepare(workspace, **many, checkpoints_total_limit="3").problems == ()
    assert not output.parent.exists()


# --- memory of devices --------------------------------------------------------------------------------


def with_devices(monkeypatch, memory: int | None, kind: str = "cuda", count: int = 1) -> None:
    there = Devices(kind, count, 8, "", bf16=True, memory=memory)
    monkeypatch.setattr(devices, "find", lambda *_: there)


def test_a_device_that_is_too_small_is_69_with_settings_that_fit(workspace, monkeypatch):
    with_devices(monkeypatch, 600_000_000)
    (problem,) = prepare(workspace, device="", batch_size="8").problems
    assert (problem.code, problem.subject) == (69, "device memory")
    assert "at least 667 MB needed on each cuda device" in problem.found
    assert "activations 667 MB" in problem.found and "600 MB available" in problem.found
    assert "gradient_checkpointing=1; batch_size=4 gradient_accumulation_steps=2" in problem.remedy
    assert prepare(workspace, device="", batch_size="4").problems == ()


def test_a_device_that_is_hardly_large_enough_is_a_warning(workspace, monkeypatch):
    with_devices(monkeypatch, 700_000_000)
    job = prepare(workspace, device="", batch_size="8")
    assert job.problems == ()
    (warning,) = [text for text in job.warnings if text.startswith("memory: ")]
    assert "it may not be enough" in warning
    with_devices(monkeypatch, 2_000_000_000)
    assert not [text for text in prepare(workspace, device="", batch_size="8").warnings if "memory" in text]


def test_processes_on_a_cpu_share_the_memory_of_the_host(workspace, monkeypatch):
    with_devices(monkeypatch, 600_000_000, kind="cpu", count=8)
    assert prepare(workspace, batch_size="2").problems == ()
    (problem,) = prepare(workspace, batch_size="2", NPROC_PER_NODE="4").problems
    assert problem.code == 69
    assert "of the host for each process" in problem.found and "150 MB available" in problem.found


def test_what_is_not_known_is_not_refused(workspace, monkeypatch):
    with_devices(monkeypatch, None)
    job = prepare(workspace, device="", batch_size="4096", dataloader_num_workers="0")
    assert job.problems == ()
    assert any(line.startswith("memory: at least 341 GB per process: ") for line in job.arithmetic)


def test_a_failure_for_memory_names_settings_that_need_clearly_less(workspace):
    """The estimate was that it would fit: recommended settings must need clearly less."""
    settings = prepare(workspace, batch_size="8").lighter()
    assert settings[:2] == ["gradient_checkpointing=1", "batch_size=4 gradient_accumulation_steps=2"]


def test_a_cache_dir_that_cannot_be_written_is_named_with_its_owner(workspace, tmp_path, monkeypatch):
    there = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "closed" and there(path, mode))
    (tmp_path / "closed").mkdir()
    cached = {"cache_dir": str(tmp_path / "closed"), "cache_latents": "disk", "center_crop": "1"}
    (problem,) = prepare(workspace, **cached).problems
    assert (problem.code, problem.subject) == (73, "cache_dir")
    assert f"not writable by user {os.getuid()}" in problem.found


@pytest.mark.parametrize("path", ["/dev/full", "/etc/passwd/below"])
def test_a_cache_dir_that_is_no_folder_is_73(workspace, path):
    (problem,) = prepare(workspace, cache_dir=path, cache_latents="disk", center_crop="1").problems
    assert (problem.code, problem.subject) == (73, "cache_dir") and "is no folder" in problem.found
