"""Tests of usage: commands to copy, whatever the prompt and the folder are."""

import shlex

import pytest

from sdjob.output import usage


@pytest.mark.parametrize("prompt", ["a cat", 'it\'s "quoted"', "two\nlines $(x) `y`"])
def test_the_command_has_the_prompt_as_one_word(prompt):
    words = shlex.split(usage.command("/output/a folder", prompt))
    assert words[:6] == ["bash", "train.sh", "generate", "/output/a folder", "--prompts", prompt]


@pytest.mark.parametrize(
    ("base", "lora", "loads"),
    [
        ("/mnt/model/sd", False, 'DiffusionPipeline.from_pretrained("/o")'),
        ("/mnt/model/sd", True, 'DiffusionPipeline.from_pretrained("/mnt/model/sd")'),
        ("/mnt/model/sd.safetensors", True, 'SomePipeline.from_single_file("/mnt/model/sd.safetensors")'),
    ],
)
def test_python_loads_the_result_or_its_base_and_the_lora(base, lora, loads):
    text = usage.python(base, "SomePipeline", 'a "cat"', "/o", lora=lora)
    compile(text, "usage", "exec")
    assert f"pipeline = {loads}\n" in text
    assert ('load_lora_weights("/o"' in text) is lora
