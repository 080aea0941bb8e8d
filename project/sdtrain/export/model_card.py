"""README.md of the result: what it is, how it was trained, and how to load it. Fit to be published."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sdjob import reading
from sdjob.formatting import counted, json_text, visible
from sdjob.model.architectures import ArchitectureFacts
from sdjob.model.hub_cache import is_hub_name
from sdjob.output import usage
from sdjob.output.layout import INDEX_FILE
from sdjob.settings.fields import settings_of
from sdjob.settings.run_spec import RunSpec
from sdtrain.export.export import WEBUI_LORA, WEBUI_MODEL

FILE = "README.md"
SAMPLES = "samples.png"

# Paths of the machine, useless elsewhere.
_PRIVATE = ("pretrained_model_name_or_path", "single_file_config", "vae", "lora_weights")
_WITHOUT_TRACE = ("checkpoints", "logging")  # groups of settings that make no difference to the result

_IN_CACHE = re.compile(r"(?:models--)?([^/]+?)--([^/]+)")  # of the hub's library, or of our own downloads
_HEAD_OF_CARD = re.compile(r"---\n(.*?\n)---\n", re.DOTALL)
_LICENCE = re.compile(r"[\w.+-]{1,64}")


def render(spec: RunSpec, facts: ArchitectureFacts, report: Mapping[str, Any], *, samples: bool) -> str:
    """The card as Markdown with the front matter that model hubs read; without any path of this machine."""
    base = _base_name(Path(spec.pretrained_model_name_or_path))
    sections = [
        _front_matter(spec, facts, base),
        f"# {'LoRA for' if spec.lora_rank else 'Fine-tuned'} {_words(base)}",
        _summary(spec, facts, report, base),
        f"![samples]({SAMPLES})" if samples else "",
        _trigger(spec),
        f"## How to load it\n\n{_block('python', _usage(spec, facts, base))}",
        _for_other_programs(spec),
        f"## Settings\n\nThose that differ from their defaults.\n\n{_block('yaml', _settings(spec))}",
        f"## Versions\n\n{', '.join(f'{name} {version}' for name, version in report['versions'].items())}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(spec: RunSpec, facts: ArchitectureFacts, base: str) -> str:
    lora = ("lora",) if spec.lora_rank else ()
    values: dict[str, Any] = {"library_name": "diffusers", "base_model": base}
    if license := spec.model_license or _license_of(Path(spec.pretrained_model_name_or_path)):
        values["license"] = license
    if spec.recipe_facts.has_subjects:
        values["instance_prompt"] = spec.instance_prompt
    values["tags"] = [*facts.tags, "text-to-image", *lora, *spec.recipe_facts.tags]
    return f"---\n{_yaml(values)}\n---"


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
        prompt = _words(json_text(spec.instance_prompt))
        how = f"to show the subject of {count}images under the prompt {prompt}"
    ema = ", with an average of the weights (EMA)" if spec.use_ema else ""
    mean = report["mean_loss"]
    loss = "No step was applied" if mean is None else f"Mean loss {mean:.4f}"
    seen = f"{counted(report['steps'], 'step')} of {counted(report['global_batch_size'], 'image')}"
    return (
        f"{what} {_words(base)}{parts}, trained {how} (dataset {_code(Path(spec.data_dir or '').name)}): "
        f"{seen} at {spec.resolution} pixels{ema}. "
        f"{loss}; weights stored as {spec.export_dtype}."
    )


def _trigger(spec: RunSpec) -> str:
    if not spec.recipe_facts.has_subjects or spec.concepts_list:
        return ""
    return f"## Trigger words\n\nUse {_code(spec.instance_prompt)} in a prompt to show the subject."


def _usage(spec: RunSpec, facts: ArchitectureFacts, base: str) -> str:
    prompt = spec.instance_prompt if spec.recipe_facts.has_subjects else "a prompt"
    first = [*spec.validation_prompts, prompt][0]
    return usage.python(base, facts.class_name, first, "path/to/this/folder", lora=spec.lora_rank > 0)


def _for_other_programs(spec: RunSpec) -> str:
    if not spec.lora_rank and not spec.export_single_file:
        return ""
    return f"WebUI, ComfyUI and the like read `{WEBUI_LORA if spec.lora_rank else WEBUI_MODEL}`."


def _settings(spec: RunSpec) -> str:
    """The changed settings that make a difference to the result, as YAML for a configuration file."""
    fields = RunSpec.model_fields
    values = {}
    for name, setting in settings_of(RunSpec).items():
        value = getattr(spec, name)
        private = name in _PRIVATE or name.endswith("_dir")
        if value == fields[name].default or private or setting.group in _WITHOUT_TRACE:
            continue
        values[setting.name or name] = list(value) if isinstance(value, tuple) else value
    return _yaml(values) if values else ""


def _yaml(values: Mapping[str, Any]) -> str:
    def dumped(*, any_language: bool) -> str:
        text: str = yaml.safe_dump(
            dict(values), sort_keys=False, allow_unicode=any_language, width=10**6, default_flow_style=False
        )
        return text.rstrip("\n")

    text = dumped(any_language=True)
    return text if visible(text) == text else dumped(any_language=False)


def _words(text: str) -> str:
    """A text in a line of Markdown that is nothing but its characters."""
    return re.sub(r"[\\`*_\[\]<>#|~&!$]", r"\\\g<0>", visible(" ".join(text.splitlines())))


def _code(text: str) -> str:
    """A span of code in a line of Markdown; a text with marks of code itself is no code."""
    return _words(text) if "`" in text else f"`{visible(' '.join(text.splitlines()))}`"


def _block(language: str, text: str) -> str:
    """A block of code, whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


# --- the base model: what its path, model_index.json and README.md say; what cannot be read is not known --------


def _base_name(path: Path) -> str:
    """ORG/NAME of the hub where that is known, else the name of the folder or file."""
    in_cache = [found for part in path.parts if (found := _IN_CACHE.fullmatch(part))]
    name = f"{in_cache[-1][1]}/{in_cache[-1][2]}" if in_cache else _recorded_name(path)
    return name if is_hub_name(name) else path.name


def _recorded_name(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        values = reading.json_of(reading.content(path / INDEX_FILE, reading.MESSAGE))
        return str(values.get("_name_or_path", ""))
    return ""


def _license_of(path: Path) -> str | None:
    """The field in the front matter of a model card."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        text = reading.content(path / "README.md", reading.MESSAGE).decode("utf-8-sig").replace("\r\n", "\n")
        if front := _HEAD_OF_CARD.match(text):
            found = reading.yaml_of(front[1], yaml.SafeLoader).get("license")
            return found if isinstance(found, str) and _LICENCE.fullmatch(found) else None
    return None
