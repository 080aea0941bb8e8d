"""Downloads of models, datasets and packages, from a hub and an index on this machine.

Tests of fetch, `sdlaunch/inputs/hub.py` and `sdlaunch/inputs/pip_install.py`.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import psutil
import pytest

from sdjob.settings.optimizers import OPTIMIZERS
from sdlaunch import plan
from sdlaunch.inputs import fetch
from sdlaunch.inputs.fetch import cache_folder
from sdlaunch.inputs.hub import wanted
from tests.sdlaunch.test_plan import found
from tests.sdlaunch.workspace import HOME, clean_environment
from tests.support.pipeline import make_fitting

NAME = "someone/tiny-diffusion"
TOKEN = "hf_secretsecret"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub that a download needs: the list of files, and the files."""

    protocol_version = "HTTP/1.1"
    root: Path
    asked: list[tuple[str, str | None]]

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        self.asked.append((path, self.headers.get("Authorization")))
        files = sorted(p for p in self.root.rglob("*") if p.is_file())
        if NAME not in path:
            return self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        if "/resolve/" in path:
            content = (
                self.root / path.split("/resolve/main/")[-1].split(f"/resolve/{SHA}/")[-1]
            ).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            return self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": SHA})
        names = [p.relative_to(self.root).as_posix() for p in files]
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": n, "size": p.stat().st_size, "oid": SHA}
                for n, p in zip(names, files, strict=True)
            ]
            return self._send(200, json.dumps(entries).encode(), {})
        about = {"id": NAME, "sha": SHA, "siblings": [{"rfilename": n} for n in names]}
        return self._send(200, json.dumps(about).encode(), {})

    do_HEAD = do_GET  # noqa: N815

    def _send(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


SHA = "0" * 40


@pytest.fixture
def hub(tmp_path):
    """A hub on this machine that has one pipeline; `hub.asked`: (path, authorisation) of each request."""
    make_fitting(tmp_path / "hub")
    (tmp_path / "hub/unet/diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    handler = type("OneHub", (Hub,), {"root": tmp_path / "hub", "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        handler.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield handler
        server.shutdown()
        thread.join()


@pytest.fixture
def online(workspace, hub, tmp_path):
    """The environment of a job whose model is only on the hub."""
    shutil.rmtree(tmp_path / "model")
    return {
        **workspace,
        "model_name": NAME,
        "offline": "0",
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "cache_dir": str(tmp_path / "cache"),
        "HOME": str(tmp_path / "home"),
    }


def prepare(workspace, *, fetch=False, **variables):
    return plan.prepare((), clean_environment(**{**workspace, **variables}), HOME, fetch=fetch)


def test_a_name_of_the_hub_is_downloaded_once_when_the_job_starts(online, hub, tmp_path, capsys):
    folder = tmp_path / "cache/hub/model/someone--tiny-diffusion"
    job = prepare(online)
    assert (job.problems, job.awaited, hub.asked) == ((), ("model_name",), [])
    assert [text for text in job.warnings if NAME in text and "when the job starts" in text]
    assert not folder.exists()

    job = prepare(online, fetch=True)
    assert (found(job), job.awaited) == ([], ())
    assert f"--pretrained_model_name_or_path={folder}" in job.launch.argv
    assert (folder / "unet/diffusion_pytorch_model.safetensors").is_file()
    assert not (folder / "unet/diffusion_pytorch_model.bin").exists()
    assert f"Bearer {TOKEN}" in {authorisation for _, authorisation in hub.asked}
    assert not (tmp_path / "home").exists()
    said = capsys.readouterr().out
    assert f"downloading model {NAME} from the hub" in said and TOKEN not in said

    hub.asked.clear()
    again = prepare(online)
    assert (again.problems, again.awaited, hub.asked) == ((), (), [])
    assert again.launch.argv == job.launch.argv
    assert again.settings["model_name"].value == NAME  # so that the record replays the same
    kept = f"model_name: {NAME} as downloaded earlier (revision {SHA[:12]}); remove {folder} for a newer one"
    assert kept in again.arithmetic
    (folder / ".complete").write_text("")  # by an earlier version
    assert "(revision not recorded)" in prepare(online).arithmetic[0]


def test_nothing_is_downloaded_while_something_else_is_wrong(online, hub, tmp_path):
    job = prepare(online, fetch=True, lr="fast")
    assert found(job) == [("lr", 64)]
    assert hub.asked == []


def test_a_local_folder_of_that_name_is_used_without_the_hub(online, hub, tmp_path):
    make_fitting(tmp_path / "model" / NAME)
    job = prepare(online, fetch=True)
    assert (job.problems, hub.asked) == ((), [])
    assert f"--pretrained_model_name_or_path={tmp_path / 'model' / NAME}" in job.launch.argv


def test_a_name_unknown_to_the_hub(online, capsys):
    (problem,) = prepare(online, fetch=True, model_name="someone/tinny").problems
    assert (problem.subject, problem.code) == ("model_name", 66)
    assert "nothing local is called someone/tinny, and it could not be downloaded" in problem.found
    assert "HF_TOKEN" in problem.remedy
    assert TOKEN not in "".join((*capsys.readouterr(), problem.found))


def test_offline_the_network_is_named_and_not_used(online, hub, tmp_path):
    (problem,) = prepare(online, fetch=True, offline="1").problems
    assert problem.code == 66
    assert f"set offline=0 to download {NAME} from the hub" in problem.remedy
    (tmp_path / "model" / "other").mkdir(parents=True)
    (problem,) = prepare(online, fetch=True, offline="").problems
    assert f"set offline=0 to download {NAME} from the hub" in problem.remedy
    assert hub.asked == []


def test_the_files_of_a_model_that_are_downloaded():
    plain = ["model_index.json", "unet/config.json", "unet/a.safetensors", "vae/b.fp16.safetensors"]
    shards = ["text_encoder/m-00001-of-00002.safetensors", "text_encoder/m.safetensors.index.json"]
    pickles = ["vae/b.fp16.bin", "unet/a.bin", "unet/a.fp16.safetensors", "unet/a.non_ema.safetensors"]
    others = [
        "README.md",
        "v1-4.ckpt",
        "v1-4.safetensors",
        "unet/f.msgpack",
        "safety_checker/model.safetensors",
    ]
    assert sorted(wanted("model", [*plain, *shards, *pickles, *others])) == sorted([*plain, *shards])
    assert wanted("model", ["unet/a.bin", "unet/a.fp16.bin"]) == ["unet/a.bin"]
    assert wanted("dataset", ["data/a.parquet", "README.md", ".gitattributes"]) == [
        "data/a.parquet",
        "README.md",
    ]


# --- packages ----------------------------------------------------------------------------------------


def wheel(folder: Path, name: str, text: str) -> None:
    """A package of one module, as pip takes it."""
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", text)
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")


@pytest.fixture
def project(workspace, tmp_path, monkeypatch):
    """The environment of a job with a script whose requirements.txt names a package from a folder of wheels."""
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", "sdjob_test_extra", "answer = 42\n")
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.py").write_text("import sdjob_test_extra\n")
    (folder / "requirements.txt").write_text("sdjob_test_extra\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return {
        **workspace,
        "PROJECT_DIR": str(folder),
        "script": "mine.py",
        "install_requirements": "1",
        "cache_dir": str(tmp_path / "cache"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
    }


def test_requirements_of_a_project_are_installed_outside_the_mounts(project, tmp_path, capsys):
    job = prepare(project)
    assert (job.problems, job.awaited) == ((), ("packages",))
    assert not (tmp_path / "cache").exists()
    job = prepare(project, fetch=True)
    assert (found(job), job.awaited) == ([], ())
    _, site = job.launch.env["PYTHONPATH"].split(":")
    assert Path(site).is_relative_to(tmp_path / "cache/packages")
    assert (Path(site) / "sdjob_test_extra.py").is_file()
    assert "Successfully installed sdjob" in capsys.readouterr().out
    assert prepare(project).launch == job.launch
    assert sorted(path.name for path in (tmp_path / "project").iterdir()) == ["mine.py", "requirements.txt"]


def test_the_package_of_the_optimizer_is_installed(workspace, tmp_path, monkeypatch):
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", "sdjob_test_optimizer", "")
    facts = replace(OPTIMIZERS["adamw8bit"], package="sdjob_test_optimizer")
    monkeypatch.setitem(OPTIMIZERS, "adamw8bit", facts)
    monkeypatch.setattr(sys, "path", list(sys.path))
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels")}
    environ = {**workspace, **index, "cache_dir": str(tmp_path / "cache"), "optimizer": "adamw8bit"}
    assert found(prepare(environ)) == [("optimizer", 69)]

    job = prepare(environ, install_requirements="1")
    assert (found(job), job.awaited) == ([], ("packages",))
    assert [text for text in job.warnings if "sdjob_test_optimizer: installed when the job starts" in text]
    job = prepare(environ, install_requirements="1", fetch=True)
    assert (found(job), job.awaited) == ([], ())
    assert list((tmp_path / "cache/packages").glob("**/sdjob_test_optimizer.py"))


def test_pip_that_fails_is_69_with_its_last_line(project, tmp_path):
    (tmp_path / "project/requirements.txt").write_text("sdjob_test_nowhere\n")
    (problem,) = prepare(project, fetch=True).problems
    assert (problem.subject, problem.code) == ("install_requirements", 69)
    assert "No matching distribution found for sdjob_test_nowhere" in problem.found
    assert list((tmp_path / "cache/packages").iterdir()) == []


def test_what_this_python_has_is_not_changed(project, tmp_path):
    """pip refuses another version than the installed one instead of replacing it."""
    (tmp_path / "project/requirements.txt").write_text("pydantic==1.0\n")
    wheel(tmp_path / "wheels", "pydantic", "")
    (problem,) = prepare(project, fetch=True).problems
    assert "pydantic==1.0" in problem.found and problem.code == 69


# --- what never ends ---------------------------------------------------------------------------------

SILENT = "import subprocess, sys, time; subprocess.Popen(['sleep', '300']); time.sleep(300)"
AT_WORK = "import time; end = time.monotonic() + 2\nwhile time.monotonic() < end: pass"


def test_a_download_without_any_progress_is_ended_with_its_children(capfd):
    before = psutil.Process().children(recursive=True)
    reason = fetch.run([sys.executable, "-c", SILENT], clean_environment(), 1.0)
    assert reason == "no progress within hang_timeout=1 s"
    assert psutil.Process().children(recursive=True) == before
    assert fetch.run([sys.executable, "-c", AT_WORK], clean_environment(), 1.0) == ""


def test_a_download_is_bounded_in_memory():
    take = [sys.executable, "-c", "bytes(1 << 30)"]
    assert fetch.run(take, clean_environment(), 0, 512 << 20) == "MemoryError"
    assert fetch.run(take, clean_environment(), 0) == ""


# --- where it is kept --------------------------------------------------------------------------------


def test_downloads_are_kept_where_the_user_can_write(tmp_path):
    home = {"HOME": str(tmp_path)}
    assert cache_folder("~/mine", home) == Path("~/mine").expanduser()
    assert cache_folder(None, home) == tmp_path / ".cache/sd-finetune"
    assert cache_folder(None, {**home, "XDG_CACHE_HOME": str(tmp_path / "x")}) == tmp_path / "x/sd-finetune"


def test_where_no_home_can_be_written_downloads_are_temporary(monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    expected = Path(tempfile.gettempdir()) / f"sd-finetune-{os.getuid()}"
    assert cache_folder(None, {}) == cache_folder(None, {"HOME": "/nonexistent"}) == expected
