"""What must not change between a checkpoint and the run that continues it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sdjob import reading
from sdjob.dataset.concepts import Concept
from sdjob.dataset.detect import dataset_in
from sdjob.dataset.formats import DatasetInfo
from sdjob.dataset.splits import TO_TRAIN
from sdjob.file_identity import content_id, edges
from sdjob.files import unreadable
from sdjob.model import trainable
from sdjob.model.architectures import ArchitectureFacts
from sdjob.model.pipeline import PipelineFolder
from sdjob.problems import JobError, Problem, bad_setting
from sdjob.reading import in_threads
from sdjob.settings.run_spec import RunSpec

_CONTENT = "dataset_content"  # of a table, whose files may be replaced by others of the same size
_TOKENIZER = "tokenizer"
_LATER = {
    _CONTENT: "dataset_name",
    _TOKENIZER: "model_name",
}  # not in checkpoints of version 0.1; settings of them
_CONTENT_FILES = 256
_TEXTS = (".json", ".txt", ".model")  # configs and tokenizers
_EARLIER_WORDS = {  # in checkpoints of version 0.1
    "dataset_name": ("data set ", "dataset "),
    "class_data_dir": ("pictures", "images"),
}


def facts_of(
    spec: RunSpec,
    architecture: ArchitectureFacts,
    model: Mapping[str, str],
    infos: Iterable[DatasetInfo],
    concepts: Sequence[Concept],
) -> dict[str, str]:
    """The facts of a run, by the setting to change: what its checkpoints record.

    model: its own facts. Raises JobError (66) if images of a class are missing.
    """
    given = [each.class_data_dir for each in concepts if each.class_data_dir and spec.with_prior_preservation]
    infos_of_classes = (dataset_in(each, spec, captions=False, wanted_splits=TO_TRAIN) for each in given)
    classes = map(data_identity, infos_of_classes)
    infos = tuple(infos)
    data = "+".join(map(data_identity, infos))
    facts = {**model, **fingerprint(spec, architecture, data, "+".join(classes))}
    if content := "+".join(_table_content(info) for info in infos if info.row_counts):
        facts[_CONTENT] = f"content {content}"
    if spec.concepts_list:
        facts["concepts_list"] = "; ".join(concept.summary for concept in concepts)
    return facts


def differences(found: dict[str, str], wanted: dict[str, str], folder: Path) -> list[Problem]:
    """A problem for each fact of a checkpoint that differs from this run: it continues only the run that made it."""
    found = {
        name: text.replace(*_EARLIER_WORDS[name]) if name in _EARLIER_WORDS else text
        for name, text in found.items()
    }
    return [
        bad_setting(
            _LATER.get(name, name),
            f"{wanted.get(name, 'nothing')} now, {found.get(name, 'nothing')} in {folder.name}",
            "Set it as before to continue that run, or start a new one with another OUTPUT_DIR (or resume=never).",
        )
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name) and (name not in _LATER or name in found)
    ]


def _table_content(info: DatasetInfo) -> str:
    """A hash of the files of a table, of at most so many that it takes seconds. Raises JobError."""
    try:
        contents = in_threads(content_id, info.files[:_CONTENT_FILES])
    except OSError as error:
        raise JobError(unreadable(info.path, error)) from error
    return hashlib.sha256("/".join(contents).encode()).hexdigest()[:16]


def model_facts(folder: PipelineFolder) -> dict[str, str]:
    """The facts of a model: other tokenizers make other ids of the same words. Raises OSError."""
    facts = {"model_name": f"model {_weights_identity(folder)}"}
    if tokenizers := [folder.parts[name].folder for name in folder.architecture.text_encoders.values()]:
        facts[_TOKENIZER] = f"tokenizer {_texts_identity(tokenizers)}"
    return facts


def _texts_identity(folders: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in (path for folder in folders for path in sorted(folder.glob("*")) if path.suffix in _TEXTS):
        digest.update(f"{path.parent.name}/{path.name}/{content_id(path)}\n".encode())
    return digest.hexdigest()[:16]


def _weights_identity(folder: PipelineFolder) -> str:
    """A hash of the configurations, and of size, head and tail of each weight file."""
    digest = hashlib.sha256()
    architecture = folder.architecture
    first, *further = architecture.text_encoders
    for name in (architecture.denoiser, "vae", first, "scheduler", *further):
        for path in sorted(folder.parts[name].folder.glob("*config.json")):
            digest.update(reading.content(path))
        for path in folder.parts[name].weights:
            digest.update(edges(path))
    return digest.hexdigest()[:16]


def model_content(folder: PipelineFolder) -> str:
    """A hash of everything that a model's images depend on, for what is cached of it: tokenizers, and weights by
    samples between head and tail too."""
    digest = hashlib.sha256()
    folders = (
        *folder.path.glob("*"),
        *(part.folder for part in folder.parts.values()),
    )  # a VAE may be elsewhere
    texts = (path for each in folders for path in each.glob("*") if path.suffix in _TEXTS)
    files = {f"{path.parent.name}/{path.name}": path for path in texts}
    files |= {f"{name}/{path.name}": path for name, part in folder.parts.items() for path in part.weights}
    for name, path in sorted(files.items()):
        digest.update(f"{name}/{content_id(path)}\n".encode())
    return digest.hexdigest()[:16]


def data_identity(info: DatasetInfo) -> str:
    """A hash of the number of examples, the columns, and names and sizes of the files; the mount may move."""
    columns = f"{info.image_column}/{info.caption_column}"
    digest = hashlib.sha256(f"{info.format.name}/{info.num_examples}/{columns}".encode())
    for part in info.format.identity(info):
        digest.update(part)
    return digest.hexdigest()[:16]


def fingerprint(
    spec: RunSpec, architecture: ArchitectureFacts, data: str, class_data: str = ""
) -> dict[str, str]:
    """The facts of settings and one subject, from the identities of data and given class images ("": generated)."""
    trained = f"the whole {architecture.denoiser_title}"
    if spec.lora_rank:
        layers = ", ".join(trainable.lora_targets(spec, architecture, architecture.denoiser))
        kind = "DoRA" if spec.use_dora else "LoRA"
        scale = ", rank-stabilized" if spec.use_rslora else ""
        trained = f"{kind} of rank {spec.lora_rank}, alpha {spec.lora_scale_alpha:g}{scale}, on {layers}"
    facts = {
        "dataset_name": f"dataset {data}",
        "recipe": spec.recipe,
        "lora_rank": trained,
        "train_text_encoder": str(spec.train_text_encoder),
        "optimizer": spec.optimizer,
        "max_token_length": str(spec.max_token_length),
        "use_ema": str(spec.use_ema),
        "seed": str(spec.seed),
        "aspect_ratio_buckets": str(spec.aspect_ratio_buckets),
        "rescale_betas_zero_snr": str(spec.rescale_betas_zero_snr),
    }
    if spec.lora_weights and spec.lora_rank:
        start = content_id(trainable.lora_file(spec.lora_weights))
        facts["lora_weights"] = f"starting from LoRA {start[:16]}"
    if spec.validation_split:
        facts["validation_split"] = f"{spec.validation_split:g}"
    if spec.recipe_facts.has_subjects:
        facts["instance_prompt"] = repr(spec.instance_prompt)
        prior = (
            f"with prior preservation of {spec.class_prompt!r}" if spec.with_prior_preservation else "without"
        )
        facts["with_prior_preservation"] = prior
        if spec.with_prior_preservation:
            facts["class_data_dir"] = f"images {class_data}" if class_data else "generated images"
            facts["num_class_images"] = str(spec.num_class_images)
    return facts
