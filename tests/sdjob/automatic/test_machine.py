"""What a machine has: memory within the limit of its container, and what compiling needs."""

import sysconfig

import psutil
import pytest

from sdjob.automatic import machine


def test_host_memory_is_limited_by_the_container(tmp_path):
    installed = machine.host_memory(tmp_path)
    assert installed == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.host_memory(tmp_path) == installed
    (tmp_path / "memory.max").write_text("1048576\n")
    assert machine.host_memory(tmp_path) == 1_048_576


def test_a_machine_with_a_compiler_and_headers(tmp_path, monkeypatch):
    (tmp_path / "g++").touch(0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert machine.lacking("cpu", {"PATH": str(tmp_path)}) == ""
    assert machine.lacking("npu", {"PATH": ""}) == ""


@pytest.mark.parametrize(
    ("device", "environ", "lacking"),
    [
        ("cpu", {}, "compiler (g++ or clang++)"),
        ("cuda", {}, "compiler (gcc or clang)"),
        ("cpu", {"CXX": "no-such-compiler -O1"}, "compiler (no-such-compiler)"),
        ("cpu", {"CXX": "cc1 -O1"}, "Python.h"),
    ],
)
def test_what_a_machine_lacks(tmp_path, monkeypatch, device, environ, lacking):
    (tmp_path / "cc1").touch(0o755)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert machine.lacking(device, {"PATH": str(tmp_path), **environ}) == lacking


def test_compiling_for_cuda_needs_triton(tmp_path, monkeypatch):
    (tmp_path / "gcc").touch(0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert machine.lacking("cuda", {"PATH": str(tmp_path)}) == "triton"
