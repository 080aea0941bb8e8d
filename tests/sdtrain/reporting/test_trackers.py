"""Trackers of other makers, with stand-ins for their packages that record every call."""

import sys
import threading
from types import SimpleNamespace

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from sdjob.output.layout import OutputLayout
from sdjob.settings.run_spec import RunSpec
from sdtrain import __main__ as main
from sdtrain.reporting import metrics, trackers
from sdtrain.reporting.metrics import StepMetrics
from sdtrain.reporting.tracker import tracker

IMAGE = Image.new("RGB", (4, 4))
SETTINGS = {
    "recipe": "dreambooth",
    "seed": 42,
    "resolution": 512,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_train_steps": 400,
    "learning_rate": 1e-4,
    "plugin": "torch_ddp",
    "mixed_precision": "auto",
    "device": "auto",
    "lora_target_modules": "to_k,to_q",
}


class Recorder:
    """A module whose functions record their calls; those named in `broken` raise."""

    def __init__(self, *broken):
        self.calls, self.broken = [], broken

    def __getattr__(self, name):
        def call(*positional, **named):
            if name in self.broken:
                raise ConnectionError("no server\nsecond line")
            self.calls.append((name, positional, named))
            return self if name == "init" else name

        return call


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in trackers.TRACKERS:
        monkeypatch.setitem(sys.modules, name, None)
        for rest in ("API_KEY", "MODE", "TRACKING_URI", "ALLOW_FILE_STORE"):
            monkeypatch.setenv(f"{name.upper()}_{rest}", "")  # so that it is restored
            monkeypatch.delenv(f"{name.upper()}_{rest}")


def train(tmp_path, name, module, monkeypatch, **more):
    """What a short run of the stand-in `module` prints."""
    if module is not None:
        monkeypatch.setitem(sys.modules, name, module)
    spec = RunSpec(
        pretrained_model_name_or_path="m",
        output_dir=str(tmp_path / "dog-3"),
        **{"tracker_project_name": "dogs", "learning_rate": 1e-4, "lora_target_modules": "to_k,to_q"} | more,
        report_to=name,
    )
    said = []
    with tracker(spec, OutputLayout(tmp_path / "dog-3"), 0, said.append, writing=True) as tracking:
        tracking.log(StepMetrics(1, loss=0.5, epoch=0.25, time=9.0))
        tracking.image("validation", IMAGE, 1)
        tracking.text("settings", "--seed=7")
        tracking.flush()
    assert [each.loss for each in metrics.read(OutputLayout(tmp_path / "dog-3").metrics)] == [None, 0.5]
    return said


VALUES = {"train/loss": 0.5, "train/epoch": 0.25}


def wandb_calls(folder, mode):
    started = {"project": "dogs", "name": "dog-3", "config": SETTINGS, "dir": str(folder), "mode": mode}
    return [
        ("Settings", (), {"console": "off"}),
        ("init", (), {**started, "settings": "Settings"}),
        ("log", (VALUES,), {"step": 1}),
        ("Image", (IMAGE,), {}),
        ("log", ({"validation": "Image"},), {"step": 1}),
        ("finish", (), {}),
    ]


def mlflow_calls(folder, mode):
    return [
        *([("set_tracking_uri", (folder.as_uri(),), {})] if mode else []),
        ("set_experiment", ("dogs",), {}),
        ("start_run", (), {"run_name": "dog-3"}),
        ("log_params", (SETTINGS,), {}),
        ("log_metrics", (VALUES,), {"step": 1}),
        ("log_image", (IMAGE, "validation/000001.png"), {}),
        ("end_run", (), {}),
    ]


def swanlab_calls(folder, mode):
    started = {"project": "dogs", "experiment_name": "dog-3", "config": SETTINGS, "logdir": str(folder)}
    return [
        ("init", (), {**started, "mode": mode}),
        ("log", (VALUES,), {"step": 1}),
        ("Image", (IMAGE,), {}),
        ("log", ({"validation": "Image"},), {"step": 1}),
        ("finish", (), {}),
    ]


CALLS = {"wandb": wandb_calls, "mlflow": mlflow_calls, "swanlab": swanlab_calls}


def test_every_tracker_has_an_adapter():
    assert set(trackers.ADAPTERS) == set(trackers.TRACKERS) == set(CALLS)


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_tracker_without_credentials_is_offline_below_the_output_folder(name, tmp_path, monkeypatch):
    module = Recorder()
    assert train(tmp_path, name, module, monkeypatch) == []
    assert module.calls == CALLS[name](tmp_path / "dog-3/trackers", "offline")


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("wandb", "WANDB_API_KEY"),
        ("wandb", "WANDB_MODE"),
        ("mlflow", "MLFLOW_TRACKING_URI"),
        ("swanlab", "SWANLAB_API_KEY"),
        ("swanlab", "SWANLAB_MODE"),
    ],
)
def test_the_environment_says_where_a_tracker_writes(name, variable, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, "x")
    module = Recorder()
    assert train(tmp_path, name, module, monkeypatch) == []
    assert module.calls == CALLS[name](tmp_path / "dog-3/trackers", None)


@pytest.mark.parametrize("broken", ["init", "log", "Image", "finish"])
def test_an_error_of_a_tracker_is_one_line_and_the_run_goes_on(broken, tmp_path, monkeypatch):
    module = Recorder(broken)
    assert train(tmp_path, "wandb", module, monkeypatch) == [
        "warning: report_to: wandb gets nothing more (ConnectionError: no server); the run goes on without it"
    ]


def test_a_package_that_cannot_be_imported_is_one_line(tmp_path, monkeypatch):
    (line,) = train(tmp_path, "swanlab", None, monkeypatch)
    assert "swanlab gets nothing more (ModuleNotFoundError" in line


def test_a_server_that_does_not_answer_neither_blocks_nor_keeps_a_run(tmp_path, monkeypatch):
    answers = threading.Event()
    monkeypatch.setattr(trackers, "_PATIENCE", 0.05)
    monkeypatch.setattr(trackers, "_WAITING", 2)
    stuck = SimpleNamespace(Settings=dict, init=lambda **_: answers.wait())
    try:
        (line,) = train(tmp_path, "wandb", stuck, monkeypatch)
        assert "wandb gets nothing more (it is slower than the run)" in line
        monkeypatch.setattr(trackers, "_WAITING", 9)
        (line,) = train(tmp_path, "wandb", stuck, monkeypatch)
        assert "wandb gets nothing more (it has not finished within 0 s)" in line
    finally:
        answers.set()


@pytest.mark.parametrize(
    ("report_to", "board", "others"),
    [
        ("tensorboard", True, []),
        ("none", False, []),
        ("", False, []),
        ("Wandb, TensorBoard", True, ["wandb"]),
        ("all", True, ["mlflow"]),
        ("all,swanlab", True, ["mlflow", "swanlab"]),
    ],
)
def test_where_a_run_reports_to(report_to, board, others, tmp_path, monkeypatch):
    modules = {name: Recorder() for name in trackers.TRACKERS}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name == "mlflow" or None)
    assert train(tmp_path, report_to, None, monkeypatch) == []
    assert (tmp_path / "dog-3/tensorboard").exists() == board
    assert [name for name, module in modules.items() if module.calls] == others
    assert (tmp_path / "dog-3/trackers").exists() == bool(others)


def test_a_process_does_not_wait_for_a_tracker_that_does_not_answer(monkeypatch, capfd):
    """What a tracker registers for the end of the process would wait for its server."""
    codes, answers = [], threading.Event()
    monkeypatch.setattr(main.os, "_exit", codes.append)
    with pytest.raises(SystemExit):
        main._leave(3)
    assert codes == []
    thread = threading.Thread(target=answers.wait, name="wandb", daemon=True)
    thread.start()
    try:
        with pytest.raises(SystemExit):  # only since _exit is a stand-in
            main._leave(3)
    finally:
        answers.set()
        thread.join()
    assert codes == [3]


def test_columns_and_charts_of_tensorboard(tmp_path):
    spec = RunSpec(pretrained_model_name_or_path="m", output_dir="o", lora_rank=4)
    layout = OutputLayout(tmp_path)
    with tracker(spec, layout, 0, print, writing=True) as tracking:
        tracking.log(StepMetrics(1, loss=1.0))
    assert len(list(layout.tensorboard.iterdir())) == 1  # one run, without one of its own for the settings
    read = EventAccumulator(str(layout.tensorboard)).Reload()
    start = HParamsPluginData.FromString(read.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    values = start.session_start_info.hparams
    assert (values["lora_rank"].number_value, values["plugin"].string_value) == (4, "torch_ddp")
    assert "output_dir" not in values
    (chart,) = read.Tensors("custom_scalars__config__")
    assert b"validation/loss" in chart.tensor_proto.string_val[0]
