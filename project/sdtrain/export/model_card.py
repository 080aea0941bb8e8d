"""README.md of the result: what it is, how it was trained, and how to load it. Fit to be published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdjob.model.architectures import ArchitectureFacts
from sdjob.model.single_file import SUFFIXES
from sdjob.model.trainable import LORA_FILE
from sdjob.settings.fields import settings_of
from sdjob.settings.run_spec import RunSpec
from sdtrain.export.export import WEBUI_LORA, WEBUI_MODEL

FILE = "README.md"
SAMPLES = "samples.png"

# Paths of the machine, useless elsewhere.
_PRIVATE = ("pretrained_model_name_or_path", "single_file_config", "vae", "lora_weights")
_WITHOUT_TRACE = ("checkpoints", "logging")  # groups of settings that make no difference to the result


def render(spec: RunSpec, facts: ArchitectureFacts, report: Mapping[str, Any], *, samples: bool) -> str:
    """The card as Markdown with the front matter that model hubs read; without any path of this machine."""
    base = Path(spec.pretrained_model_name_or_path).name
    sections = [
        _front_matter(spec, facts, base),
        f"# {'LoRA for' if spec.lora_rank else 'Fine-tuned'} {base}",
        _summary(spec, facts, report, base),
        f"![samples]({SAMPLES})" if samples else "",
        f"## How to load it\n\n```python\n{_usage(spec, facts, base)}\n```",
        _for_other_programs(spec),
        f"## Settings\n\nThose that differ from their defaults.\n\n```yaml\n{_settings(spec)}\n```",
        f"## Versions\n\n{', '.join(f'{name} {version}' for name, version in report['versions'].items())}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(spec: RunSpec, facts: ArchitectureFacts, base: str) -> str:
    lora = ("lora",) if spec.lora_rank else ()
    values: dict[str, Any] = {"library_name": "diffusers", "base_model": base}
    if spec.recipe_facts.has_subjects:
        values["instance_prompt"] = spec.instance_prompt
    values["tags"] = [*facts.tags, "text-to-image", *lora, *spec.recipe_facts.tags]
    return "\n".join(["---", *(f"{name}: {_text(value)}" for name, value in values.items()), "---"])


def _summary(spec: RunSpec, facts: ArchitectureFacts, report: Mapping[str, Any], base: str) -> str:
    all_weights = f"All weights of the {facts.denoiser_title} of"
    kind = "DoRA" if spec.use_dora else "LoRA"
    what = f"A {kind} of rank {spec.lora_rank} for" if spec.lora_rank else all_weights
    _, *encoders = report["trained_parts"]
    parts = f" and its text encoder{'s' if len(encoders) > 1 else ''}" if encoders else ""
    count = (
        f"{report['num_examples']} " if report["num_examples"] else ""
    )  # not recorded in a step checkpoint
    how = f"on {count}captioned images"
    if spec.recipe_facts.has_subjects:
        how = f"to show the subject of {count}images under the prompt {_text(spec.instance_prompt)}"
    ema = ", with an average of the weights (EMA)" if spec.use_ema else ""
    mean = report["mean_loss"]
    loss = "No step was applied" if mean is None else f"Mean loss {mean:.4f}"
    return (
        f"{what} {base}{parts}, trained {how} (dataset `{Path(spec.data_dir or '').name}`): "
        f"{report['steps']} steps of {report['global_batch_size']} images at {spec.resolution} pixels{ema}. "
        f"{loss}; weights stored as {spec.export_dtype}."
    )


def _usage(spec: RunSpec, facts: ArchitectureFacts, base: str) -> str:
    """Python that loads the result and generates an image. Only the pipeline's own class reads a single file."""
    prompt = spec.instance_prompt if spec.recipe_facts.has_subjects else "a prompt"
    name, load = "DiffusionPipeline", 'DiffusionPipeline.from_pretrained("path/to/this/folder")'
    if spec.lora_rank and base.endswith(SUFFIXES):
        name, load = facts.class_name, f"{facts.class_name}.from_single_file({_text(base)})"
    elif spec.lora_rank:
        load = f"DiffusionPipeline.from_pretrained({_text(base)})"
    lora = f'pipeline.load_lora_weights("path/to/this/folder", weight_name="{LORA_FILE}")'
    lines = [
        f"from diffusers import {name}",
        "",
        f"pipeline = {load}",
        *([lora] if spec.lora_rank else []),
        f"image = pipeline({_text([*spec.validation_prompts, prompt][0])}).images[0]",
        'image.save("image.png")',
    ]
    return "\n".join(lines)


def _for_other_programs(spec: RunSpec) -> str:
    if not spec.lora_rank and not spec.export_single_file:
        return ""
    return f"WebUI, ComfyUI and the like read `{WEBUI_LORA if spec.lora_rank else WEBUI_MODEL}`."


def _settings(spec: RunSpec) -> str:
    """The changed settings that make a difference to the result, as YAML for a configuration file."""
    fields = RunSpec.model_fields
    lines = []
    for name, setting in settings_of(RunSpec).items():
        value = getattr(spec, name)
        private = name in _PRIVATE or name.endswith("_dir")
        if value == fields[name].default or private or setting.group in _WITHOUT_TRACE:
            continue
        lines.append(f"{setting.name or name}: {_text(list(value) if isinstance(value, tuple) else value)}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    """JSON, which is also YAML, and Python for strings."""
    return json.dumps(value, ensure_ascii=False)
