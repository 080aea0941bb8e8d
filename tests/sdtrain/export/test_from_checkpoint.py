"""The result of a step checkpoint is that of the run at this step, byte for byte."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from sdjob.model.weights import read_header
from sdjob.output.checkpoint_files import SETTINGS
from sdjob.output.layout import LORA_FILE
from sdtrain.export import export, from_checkpoint
from tests.support.worker import flags, snapshot


def write_result(output, step, to, *, weights="raw", **settings) -> int:
    """Export with the settings of the checkpoint, as the launcher passes them on."""
    checkpoint = output / f"checkpoint/checkpoint-{step:06d}"
    given = json.loads((checkpoint / SETTINGS).read_text())
    more = [f"--{name}={value}" for name, value in settings.items()]
    return from_checkpoint.main([str(checkpoint), str(to), f"--weights={weights}", *given, *more])


def weights_of(folder) -> dict[str, object]:
    """The bytes of every tensor and all metadata, whose order in a header is random; the hash of other files."""
    found: dict[str, object] = {
        name: digest
        for name, digest in snapshot(folder).items()
        if "checkpoint-0" not in name and name != "README.md"
    }
    for name in found:
        if name.endswith(".safetensors"):
            tensors = {
                key: weight.view(-1).view(torch.uint8).numpy().tobytes()
                for key, weight in load_file(folder / name).items()
            }
            found[name] = tensors, {**read_header(folder / name).metadata, "modelspec.date": ""}
    return found


CASES = {
    "EMA": {"use_ema": True, "ema_decay": 0.5},
    "all layouts in fp16": {"export_single_file": True, "export_dtype": "fp16"},
    "text encoder, from shards": {"train_text_encoder": True, "plugin": "fsdp"},
    "EMA, from shards": {"use_ema": True, "ema_decay": 0.5, "plugin": "fsdp"},
    "DoRA": {"lora_rank": 2, "use_dora": True},
    "rank-stabilized LoRA": {"lora_rank": 2, "use_rslora": True, "lora_dropout": 0.5},
    "LoRA": {"lora_rank": 2, "lora_alpha": 3, "train_text_encoder": True, "export_dtype": "bf16"},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_the_last_checkpoint_gives_the_result_of_the_run(train, tmp_path, settings):
    output = train(max_train_steps=2, learning_rate=0.1, checkpointing_steps=1, **settings)
    weights = "ema" if settings.get("use_ema") else "raw"
    assert write_result(output, 2, tmp_path / "out", weights=weights) == 0
    found, wanted = weights_of(tmp_path / "out"), weights_of(output / "checkpoint")
    assert found == wanted
    card = (tmp_path / "out/README.md").read_text()
    assert "2 steps of 1 image" in card and str(tmp_path) not in card
    assert write_result(output, 1, tmp_path / "earlier", weights=weights) == 0
    changed = {name for name, file in weights_of(tmp_path / "earlier").items() if file != wanted[name]}
    trained = (
        {LORA_FILE, export.WEBUI_LORA}
        if settings.get("lora_rank")
        else {
            *(["webui/model.safetensors"] if settings.get("export_single_file") else []),
            *(["text_encoder/model.safetensors"] if settings.get("train_text_encoder") else []),
            "unet/diffusion_pytorch_model.safetensors",
        }
    )
    assert changed == trained


def test_the_weights_without_ema_are_those_of_a_run_without_it(train, tmp_path):
    settings = {"max_train_steps": 2, "learning_rate": 0.1}
    with_ema, without = train("ema", use_ema=True, **settings), train("raw", **settings)
    assert write_result(with_ema, 2, tmp_path / "out", weights="raw") == 0
    assert weights_of(tmp_path / "out") == weights_of(without / "checkpoint")
    assert "EMA" not in (tmp_path / "out/README.md").read_text()


def test_another_model_is_refused(train, tmp_path, inputs, capsys):
    output = train(max_train_steps=1)
    other = shutil.copytree(inputs["pretrained_model_name_or_path"], tmp_path / "other")
    config = other / "unet/config.json"
    config.write_text(config.read_text() + "\n")
    given = {"pretrained_model_name_or_path": other}
    assert write_result(output, 1, tmp_path / "out", **given) == 66
    assert "is not the model that checkpoint-000001 was trained on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_flags_are_refused_without_a_traceback(capsys):
    assert from_checkpoint.main(["a", "b", "--weights=raw", *flags(output_dir="o", resolution=7)]) == 64
    assert "Traceback" not in capsys.readouterr().err
