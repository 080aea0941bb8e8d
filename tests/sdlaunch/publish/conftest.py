import pytest

from sdjob.model.trainable import LORA_FILE


@pytest.fixture
def result(tmp_path):
    """The folder of a LoRA with what is alongside it."""
    folder = tmp_path / "output/checkpoint"
    for name in (LORA_FILE, "README.md", "samples.png", "webui/lora.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for name in ("checkpoint-000400/model.safetensors", ".export.tmp/half", "webui/.cache/x"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(name)
    (folder / "link").symlink_to("/etc/passwd")
    return folder


FILES = {LORA_FILE, "README.md", "samples.png", "webui/lora.safetensors"}
