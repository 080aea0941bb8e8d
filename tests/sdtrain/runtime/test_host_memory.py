"""The available memory of the host, where the container may use it."""

import pytest

from sdtrain.runtime import host_memory

CGROUPS = {
    "version 2": ("memory.max", "memory.current", "memory.stat", "inactive_file 30\nanon 5\n"),
    "version 1": (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file 30\n",
    ),
}


@pytest.mark.parametrize("version", CGROUPS)
def test_the_memory_of_the_container_counts(tmp_path, version):
    limit, current, statistics, text = CGROUPS[version]
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text("1000\n")
    (tmp_path / current).write_text("400\n")
    (tmp_path / statistics).write_text(text)
    assert host_memory.available(tmp_path) == 630


def test_a_container_without_a_limit_has_the_memory_of_the_machine(tmp_path):
    unlimited = host_memory.available(tmp_path)
    assert unlimited > 10**6
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("400\n")
    (tmp_path / "memory.stat").write_text("inactive_file 0\n")
    assert host_memory.available(tmp_path) > 10**6
