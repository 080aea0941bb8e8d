"""README.md of the result: what it is, how it was trained, and how to load it. It may be published as it stands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdjob.model.single_file import SUFFIXES
from sdjob.output.layout import LORA_FILE
from sdjob.settings.fields import settings_of
from sdjob.settings.run_spec import RunSpec
from sdtrain.export.export import WEBUI_LORA, WEBUI_MODEL

FILE = "README.md"
SAMPLES = "samples.png"

# Places on the machine of the training are of no use elsewhere, and nobody else's business.
_PRIVATE = ("pretrained_model_name_or_path", "single_file_config")
_WITHOUT_TRACE = ("checkpoints", "logging")  # groups of settings that make no difference to the result


def render(
    spec: RunSpec, report: Mapping[str, Any], *, samples: bool, class_name: str = "DiffusionPipeline"
) -> str:
    """The card as Markdown with the front matter that model hubs read; holds no path of this machine.

    `class_name`: of the pipeline; only it can read a model in one file.
    """
    base = Path(spec.pretrained_model_name_or_path).name
    sections = [
        _front_matter(spec, base),
        f"# {_title(spec, base)}",
        _summary(spec, report, base),
        f"![samples]({SAMPLES})" if samples else "",
        f"## How to load it\n\n```python\n{_usage(spec, base, class_name)}\n```",
        _for_others(spec),
        f"## Settings\n\nThose that differ from their defaults.\n\n```yaml\n{_settings(spec)}\n```",
        f"## Versions\n\n{', '.join(f'{name} {version}' for name, version in report['versions'].items())}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(spec: RunSpec, base: str) -> str:
    tags = [
        "stable-diffusion",
        "text-to-image",
        *(["lora"] if spec.lora_rank else []),
        *spec.recipe_facts.tags,
    ]
    values: dict[str, Any] = {"library_name": "diffusers", "base_model": base}
    if spec.recipe_facts.has_subjects:
        values["instance_prompt"] = spec.instance_prompt
    lines = [f"{name}: {_text(value)}" for name, value in {**values, "tags": tags}.items()]
    return "\n".join(["---", *lines, "---"])


def _title(spec: RunSpec, base: str) -> str:
    return f"{'LoRA for' if spec.lora_rank else 'Fine-tuned'} {base}"


def _summary(spec: RunSpec, report: Mapping[str, Any], base: str) -> str:
    what = f"A LoRA of rank {spec.lora_rank} for" if spec.lora_rank else "All weights of the U-Net of"
    _, *encoders = report["trained_parts"]
    parts = f" and its text encoder{'s' if len(encoders) > 1 else ''}" if encoders else ""
    data = Path(spec.data_dir or "").name
    how = (
        f"to show the subject of {report['num_examples']} images under the prompt {_text(spec.instance_prompt)}"
        if spec.recipe_facts.has_subjects
        else f"on {report['num_examples']} captioned images"
    )
    average = ", with an average of the weights (EMA)" if spec.use_ema else ""
    mean = report["mean_loss"]
    loss = "No step was applied" if mean is None else f"Mean loss {mean:.4f}"
    return (
        f"{what} {base}{parts}, trained {how} (dataset `{data}`): {report['steps']} steps of "
        f"{report['global_batch_size']} images at {spec.resolution} pixels{average}. "
        f"{loss}; weights stored as {spec.export_dtype}."
    )


def _usage(spec: RunSpec, base: str, class_name: str) -> str:
    one_file = spec.lora_rank > 0 and base.endswith(SUFFIXES)
    kind, loader = (class_name, "from_single_file") if one_file else ("DiffusionPipeline", "from_pretrained")
    prompts = [
        *spec.validation_prompts[:1],
        spec.instance_prompt if spec.recipe_facts.has_subjects else "a prompt",
    ]
    load = (
        [
            f"pipeline = {kind}.{loader}({_text(base)})",
            f'pipeline.load_lora_weights("path/to/this/folder", weight_name="{LORA_FILE}")',
        ]
        if spec.lora_rank
        else ['pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder")']
    )
    draw = [f"image = pipeline({_text(prompts[0])}).images[0]", 'image.save("image.png")']
    return "\n".join([f"from diffusers import {kind}", "", *load, *draw])


def _for_others(spec: RunSpec) -> str:
    if not spec.lora_rank and not spec.export_single_file:
        return ""
    file = WEBUI_LORA if spec.lora_rank else WEBUI_MODEL
    return f"WebUI, ComfyUI and the like read `{file}`."


def _settings(spec: RunSpec) -> str:
    """The settings that were changed and show in the result, as YAML that a configuration file takes."""
    fields = RunSpec.model_fields
    lines = []
    for name, about in settings_of(RunSpec).items():
        value = getattr(spec, name)
        private = name in _PRIVATE or name.endswith("_dir")
        if value == fields[name].default or private or about.group in _WITHOUT_TRACE:
            continue
        lines.append(f"{about.name or name}: {_text(list(value) if isinstance(value, tuple) else value)}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    """JSON, which is YAML too, and for texts Python."""
    return json.dumps(value, ensure_ascii=False)
