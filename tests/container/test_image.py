"""Tests of docker/Dockerfile: the image's configuration and content."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.container.engine import HOME

GB = 10**9
LARGEST = 1.6 * GB


@pytest.fixture(scope="session")
def config(engine, image):
    found = json.loads(engine.call("image", "inspect", image))[0]
    return found["Config"] | {"size": found["Size"]}


def inside(box, *command: str) -> str:
    ended = box.run(*command)
    assert ended.code == 0, ended.text
    return ended.output


def test_the_configuration(config):
    assert config["User"] == "10001"
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert config["Entrypoint"] == ["tini", "-s", "--", "/opt/project/docker/start.sh"]
    labels = {
        name.rpartition(".")[2]: value for name, value in config["Labels"].items() if "opencontainers" in name
    }
    assert labels["licenses"] == "Apache-2.0"
    assert labels["revision"] == "test"
    assert {"title", "description", "version", "documentation"} <= labels.keys()


def test_it_is_small(config):
    print(f"image: {config['size'] / GB:.2f} GB")
    assert config["size"] < LARGEST


def test_the_launcher_is_a_child_of_tini(box):
    assert inside(box, "cat", "/proc/1/comm").strip() == "tini"
    assert inside(box, "id", "-u").strip() == "10001"


def test_build_tools_are_not_in_the_image(box):
    script = r"""
import os, shutil, sys
print([tool for tool in ("gcc", "cc", "g++", "make", "ld", "git", "curl", "wget") if shutil.which(tool)])
left = ["/root/.cache", "/home/trainer/.cache", "/wheels", "/locked", "/root/.config", "/etc/pip.conf"]
print([path for path in left if os.path.exists(path)])
folders = ["/var/lib/apt/lists", "/var/cache/apt", "/tmp", "/var/tmp"]
print([path for folder in folders for path in os.listdir(folder)])
"""
    assert inside(box, "python", "-c", script).splitlines() == ["[]", "[]", "[]"]


def test_the_installed_packages_are_the_locked_ones(box):
    listed = json.loads(
        inside(box, "python", "-m", "pip", "list", "--format=json", "--disable-pip-version-check")
    )
    found = {each["name"].lower().replace("_", "-").replace(".", "-"): each["version"] for each in listed}
    locked = [HOME / "docker/locked" / f"requirements{part}.txt" for part in ("-pip", "-torch", "")]
    lines = [line.split()[0] for file in locked for line in file.read_text().splitlines() if line[0] != "#"]
    assert found == dict(line.split("==") for line in lines)


def test_the_bill_of_materials_names_every_package(box):
    script = """
import importlib.metadata, json, subprocess
bill = json.load(open("/usr/share/sbom/image.cdx.json"))
names = {(each["purl"].split("@")[0].split("/")[0], each["name"], each["version"]) for each in bill["components"]}
python = {("pkg:pypi", each.metadata["Name"].lower().replace("_", "-").replace(".", "-"), each.version)
          for each in importlib.metadata.distributions()}
shown = subprocess.run(["dpkg-query", "-W", "-f=${Package} ${Version}\\\\n"], capture_output=True, text=True).stdout
debian = {("pkg:deb", *line.split()) for line in shown.splitlines()}
assert len(python) > 50 and len(debian) > 50
print(bill["bomFormat"], bill["specVersion"], sorted(names ^ (python | debian)))
"""
    text = inside(box, "python", "-c", script)
    assert text.strip().startswith("CycloneDX 1.6 [('pkg:generic', 'python', '3.11")
    assert text.count("pkg:") == 1, text


def test_nothing_of_this_machine_is_in_a_layer(engine, image, config, tmp_path):
    """Neither settings of pip nor proxies, certificates or passwords of the machine that built it."""
    private = {value for value in _of_this_machine() if len(value) > 6}
    archive = tmp_path / "image.tar"
    engine.call("save", f"--output={archive}", image, timeout=600)
    with tarfile.open(archive) as outer:
        for member in outer.getmembers():
            file = outer.extractfile(member)
            if not member.name.endswith(".tar"):
                _assert_absent(private, file.read() if file else b"", member.name)
                continue
            with tarfile.open(fileobj=file) as layer:
                for entry in layer:
                    path = "/" + entry.name
                    assert not path.endswith(("/pip.conf", "/.netrc", "/.pypirc", "/.dockercfg")), path
                    assert entry.name not in ("wheels", "locked"), path
                    if entry.isfile() and entry.size < 2**20 and entry.mtime > 0 and _written_by_us(path):
                        _assert_absent(private, layer.extractfile(entry).read(), path)


def _written_by_us(path: str) -> bool:
    return (
        path.startswith(("/etc/", "/opt/project/", "/home/", "/root/", "/usr/share/sbom/"))
        or "dist-info" in path
    )


def _assert_absent(private: set[str], content: bytes, where: str) -> None:
    assert not [value for value in private if value.encode() in content], where


def _of_this_machine() -> set[str]:
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    values = {line.partition("=")[2].strip("'\"") for line in shown.stdout.splitlines()}
    parts = {word for value in values for word in value.split() if "/" in word or "@" in word}
    secret = {
        value
        for name, value in os.environ.items()
        if "TOKEN" in name or "PASSWORD" in name or "PROXY" in name
    }
    own = {str(HOME), str(Path.home() / ".cache")}
    public = {"/etc/ssl/certs/ca-certificates.crt"}  # where Debian has it in every image
    return (parts | secret | own) - public


def test_the_first_line_is_printed_at_once(box, mounts):
    """Container, tini, Python, the launcher and its checks: under a second on an idle machine."""
    best = min(box.run("plan", mounts=mounts).seconds for _ in range(3))
    print(f"from the start of a container to the end of a plan: {best:.2f} s")
    assert best < 4


def test_doctor(box):
    ended = box.run("doctor", "--json")
    assert ended.code == 0, ended.text
    found = json.loads(ended.output)
    assert found["not as proven"] == {}
    assert None not in found["versions"].values()
    assert found["problems"] == []
    assert found["devices"]["cpu"]["available"] and not found["devices"]["cuda"]["available"]
    assert found["distributed"]["gloo"] == ""
    assert found["attention"]["sdpa"] == ""
    assert found["attention"]["xformers"]


def test_other_programs_of_the_image_can_be_started(box):
    assert (
        "TensorBoard" in box.run("tensorboard", "--help").text
        or box.run("tensorboard", "--version").code == 0
    )
    assert box.run("sh", "-c", "exit 3").code == 3


def test_a_misspelled_verb_is_not_a_program(box):
    ended = box.run("plann")
    assert ended.code == 64
    assert "'plann' is neither a verb nor a setting" in ended.text
