"""The container engine (podman or docker): building and running images, and a base image without a registry."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("CONTAINER_TEST_CACHE", "~/.cache/sd-finetune-container-tests")).expanduser()
RELEASE = "bookworm"  # of Debian; the default of docker/Dockerfile
PYTHON = "3.11"  # of that release
IMAGE = "localhost/sd-finetune:test-cpu"


@dataclass(frozen=True)
class Engine:
    """A container engine that runs containers here."""

    program: str
    env: tuple[tuple[str, str], ...] = ()

    @property
    def is_podman(self) -> bool:
        return self.program == "podman"

    def call(self, *arguments: str, timeout: float = 120, check: bool = True) -> str:
        """Run a command of the engine; returns its output. Raises CalledProcessError after printing the output."""
        done = self.run(*arguments, timeout=timeout)
        if check and done.returncode != 0:
            raise AssertionError(
                f"{self.program} {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def run(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command of the engine, whatever its exit code."""
        return subprocess.run(
            [self.program, *arguments],
            env=dict(os.environ) | dict(self.env),
            cwd=CACHE,  # podman writes a file into its working directory when a container runs out of memory
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def has(self, image: str) -> bool:
        return self.run("image", "inspect", image).returncode == 0


@functools.cache
def find() -> Engine | str:
    """A working engine, or the reason why there is none."""
    CACHE.mkdir(parents=True, exist_ok=True)
    reasons = []
    for program in ("podman", "docker"):
        if not shutil.which(program):
            reasons.append(f"no {program}")
            continue
        engine = Engine(program, _podman_settings() if program == "podman" else ())
        if not (reason := _defect(engine)):
            return engine
        reasons.append(f"{program}: {reason}")
    return "; ".join(reasons)


def _defect(engine: Engine) -> str:
    """The reason why this engine cannot run containers here; empty: it has run one."""
    answer = engine.run("info")
    if answer.returncode == 0:
        try:
            answer = engine.run("run", "--rm", "--network=none", base_image(engine), "true")
        except FileNotFoundError as error:
            return f"no base image: {error.filename} is not installed, and CONTAINER_TEST_BASE_IMAGE not set"
        except AssertionError as error:
            return f"no base image: {error}"
    said = answer.stderr.strip().splitlines() or [f"ended with {answer.returncode}"]
    return said[-1] if answer.returncode else ""


def _podman_settings() -> tuple[tuple[str, str], ...]:
    """Settings that work also inside a virtual machine or container, where systemd and some limits are missing."""
    limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    allowed = {name: min(resource.getrlimit(kind)[1] % 2**63, 32768) for name, kind in limits.items()}
    ulimits = ", ".join(f'"{name}={value}:{value}"' for name, value in allowed.items())
    lines = ["[containers]", f"default_ulimits = [{ulimits}]", "[engine]"]
    lines += ['cgroup_manager = "cgroupfs"', 'events_logger = "file"']
    if shutil.which("runc"):
        lines.append('runtime = "runc"')
    settings = CACHE / "containers.conf"
    settings.write_text("\n".join(lines) + "\n")
    return (("CONTAINERS_CONF", str(settings)),)


def build(engine: Engine, *, revision: str = "test") -> str:
    """Build the `cpu` image of this checkout, if its content has changed; returns its name."""
    engine.call(
        "build",
        *("--pull=never", "--format=docker") if engine.is_podman else (),
        "--network=host",
        "--target=cpu",
        f"--file={HOME / 'docker' / 'Dockerfile'}",
        f"--build-arg=BASE_IMAGE={base_image(engine)}",
        f"--build-arg=REVISION={revision}",
        f"--build-context=wheels={wheels()}",
        *(f"--build-arg={name}={value}" for name, value in proxies().items()),
        f"--tag={IMAGE}",
        str(HOME),
        timeout=1800,
    )
    return IMAGE


def wheels() -> Path:
    """A folder with everything that the image installs, from where this machine's pip gets its packages.

    So no setting of this machine, no certificate and no password of a package index comes near the build.
    """
    locks = [HOME / "docker/locked" / f"requirements{part}.txt" for part in ("-pip", "-torch", "")]
    wanted = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()
    folder, stamp = CACHE / "wheels", CACHE / "wheels.sha256"
    if not stamp.exists() or stamp.read_text() != wanted:
        for lock in locks:
            _download(lock, folder)  # only missing files
        stamp.write_text(wanted)
    return folder


def _download(lock: Path, folder: Path) -> None:
    """Download what the image's Python would install for this file; torch also from TORCH_CPU_INDEX, if set."""
    newest = int((os.confstr("CS_GNU_LIBC_VERSION") or "glibc 2.36").rpartition(".")[2])
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(5, newest + 1)]
    platforms += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64", "linux_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += [
        "--implementation=cp",
        f"--python-version={PYTHON}",
        "--abi=cp311",
        "--abi=abi3",
        "--abi=none",
    ]
    command += [f"--platform={platform}" for platform in platforms]
    command += [f"--dest={folder}", f"--requirement={lock}"]
    if (index := os.environ.get("TORCH_CPU_INDEX")) and "torch" in lock.name:
        command.append(f"--extra-index-url={index}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def base_image(engine: Engine) -> str:
    """Make a minimal Debian from the package sources of this machine's apt; returns its name."""
    if given := os.environ.get("CONTAINER_TEST_BASE_IMAGE"):
        return given
    sources = apt_sources()
    name = f"localhost/debian-{RELEASE}:{hashlib.sha256(sources.encode()).hexdigest()[:12]}"
    if not engine.has(name):
        root, archive = CACHE / "base", CACHE / "base.tar"
        shutil.rmtree(root, ignore_errors=True)
        environment = dict(os.environ) | proxies()
        mirror = sources.split()[1]
        command = ["debootstrap", "--variant=minbase", RELEASE, str(root), mirror]
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True, timeout=1200)
        (root / "etc/apt/sources.list").write_text(sources)
        unneeded = ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale")
        for folder in (*unneeded, "var/cache/apt/archives", "var/lib/apt/lists", "var/log"):
            shutil.rmtree(root / folder)
            (root / folder).mkdir()
        (root / "var/cache/apt/archives/partial").mkdir()
        (root / "var/lib/apt/lists/partial").mkdir()
        (root / "etc/resolv.conf").unlink(missing_ok=True)
        (root / "etc/hostname").unlink(missing_ok=True)
        subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
        engine.call("import", str(archive), name, timeout=600)
        shutil.rmtree(root)
        archive.unlink()
    return name


def apt_sources() -> str:
    """Lines of sources.list: this machine's apt sources for the release of the base image."""
    form = "$(ORIGIN)\t$(REPO_URI)\t$(RELEASE)"
    asked = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()
    rows = dict.fromkeys(tuple(line.split("\t")) for line in found if line.startswith("Debian\t"))
    lines = [f"deb {uri} {suite} main" for _, uri, suite in rows if suite.startswith(RELEASE)]
    lines.sort(key=lambda line: line.split()[2] != RELEASE)  # the release itself first: its mirror is used
    assert lines and lines[0].split()[2] == RELEASE, (
        f"apt on this machine has no sources of Debian {RELEASE}; set CONTAINER_TEST_BASE_IMAGE to an image with apt"
    )
    return "\n".join(lines) + "\n"


def proxies() -> dict[str, str]:
    """The proxy of this machine's apt, as environment variables."""
    asked = ["apt-config", "shell", "proxy", "Acquire::http::Proxy"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    found = re.search(r"proxy='(http.*)'", said)
    return {"http_proxy": found.group(1)} if found else {}
