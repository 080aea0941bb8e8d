"""Which settings work together, and on which devices; everything else is refused before a job starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sdjob.problems import Problem, bad_setting, no_hardware
from sdjob.settings.choices import CACHED
from sdjob.settings.optimizers import OPTIMIZERS
from sdjob.settings.plugins import DEVICE_FACTS, PLUGINS, optimizers_of, plugins_with
from sdjob.settings.recipes import with_subjects
from sdjob.settings.run_spec import RunSpec

_POLYNOMIAL_END = 1e-7  # where diffusers' polynomial schedule ends
_LEAST_SCALE = 0.1  # of an optimizer that finds its rate itself, as a fraction of its preset


@dataclass(frozen=True)
class Topology:
    """Where a job runs: the device type, and the number of processes over all nodes."""

    device: str  # cuda, cpu, …; never "auto"
    world_size: int
    bf16: bool | None = None  # whether this device computes in it at speed; None: not known yet
    fp16: bool | None = None


def resolve_precision(spec: RunSpec, topology: Topology) -> str:
    """The type of the computation for `mixed_precision=auto`: no, fp16 or bf16; otherwise the given one."""
    facts = PLUGINS[spec.plugin]
    if len(facts.precisions) == 1:
        return facts.precisions[0]
    if spec.mixed_precision != "auto":
        return spec.mixed_precision
    if not DEVICE_FACTS[topology.device].auto_mixes:
        return "no"
    if topology.bf16 is None:
        return "auto"
    if topology.bf16:
        return "bf16"
    return "fp16" if facts.package and topology.fp16 is not False else "no"


def width(spec: RunSpec, topology: Topology) -> int:
    """Bytes of a number in the type of the computation."""
    return 4 if resolve_precision(spec, topology) == "no" else 2


_Rule = tuple[object, str, str, str]  # whether it is broken, subject, found, remedy


def _broken(rules: Iterable[_Rule]) -> list[Problem]:
    return [bad_setting(*words) for is_broken, *words in rules if is_broken]


def problems(spec: RunSpec, topology: Topology) -> list[Problem]:
    """Every reason why this spec cannot run there."""
    return [
        *_plugin(spec, topology),
        *_attention(spec, topology),
        *_precision(spec, topology),
        *_weights_dtype(spec, topology),
        *_broken([*_of_subjects(spec), *_of_data(spec), *_of_schedule(spec)]),
        *_optimizer(spec),
    ]


def _plugin(spec: RunSpec, topology: Topology) -> Iterator[Problem]:
    facts = PLUGINS[spec.plugin]
    if spec.plugin == "none" and topology.world_size > 1:
        yield bad_setting(
            "plugin",
            f"none with {topology.world_size} processes",
            "Use plugin=torch_ddp, or NPROC_PER_NODE=1 on one node.",
        )
    if topology.device not in facts.devices:
        other = "fsdp, which shards the same states on a CPU too" if facts.package else "torch_ddp"
        yield no_hardware(
            "plugin",
            f"{spec.plugin} on device={topology.device}",
            f"It runs on {', '.join(facts.devices)}: use plugin={other}.",
        )
    for name, field in RunSpec.model_fields.items():
        value, allowed = getattr(spec, name), plugins_with(name)
        if allowed and spec.plugin not in allowed and value != field.default:
            yield bad_setting(
                name,
                f"{typed(value)} with plugin={spec.plugin}",
                f"Leave {name}={typed(field.default)}, or use a plugin that has it: {', '.join(allowed)}.",
            )
    if topology.device == "mps" and topology.world_size > 1:
        yield no_hardware(
            "NPROC_PER_NODE",
            f"{topology.world_size} processes on device=mps",
            "PyTorch has no collectives for it: use NPROC_PER_NODE=1.",
        )
    if spec.plugin == "gemini" and spec.placement == "auto" and topology.device == "npu":
        yield bad_setting(
            "placement", "auto on npu", "Gemini decides on cuda only: use placement=cuda or cpu."
        )


def typed(value: object) -> str:
    """A value as users type it: a switch is 1 or 0."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _attention(spec: RunSpec, topology: Topology) -> Iterator[Problem]:
    backends = set(spec.attention.split(","))
    if topology.device == "cpu" and backends <= {"xformers", "cudnn", "fa4"}:
        yield bad_setting(
            "attention",
            f"{spec.attention} on a CPU",
            "Use attention=auto; that backend needs an NVIDIA device.",
        )
    half_only = topology.device == "cuda" and backends <= {"flash", "cudnn", "fa4"}
    if half_only and resolve_precision(spec, topology) == "no":
        yield bad_setting(
            "attention",
            f"{spec.attention} in fp32",
            "That backend computes in half precision only: use attention=auto, or mixed_precision=bf16 or fp16.",
        )


def _precision(spec: RunSpec, topology: Topology) -> Iterator[Problem]:
    facts, resolved = PLUGINS[spec.plugin], resolve_precision(spec, topology)
    precision = resolved if spec.mixed_precision == "auto" else spec.mixed_precision
    if topology.device in facts.devices and precision not in ("auto", *facts.precisions):
        other = "fsdp" if facts.shards else "torch_ddp"
        yield bad_setting(
            "mixed_precision",
            f"{precision} with plugin={spec.plugin}",
            f"Use mixed_precision={' or '.join(facts.precisions)}, or plugin={other}.",
        )
    elif resolved != "auto" and not _computes_in(topology, resolved):
        usable = [other for other in facts.precisions if _computes_in(topology, other)]
        cause = f"mixed_precision={resolved}" if usable else f"plugin={spec.plugin}"
        if not usable:
            others = PLUGINS["torch_ddp"].precisions
            usable = [f"{other} with plugin=torch_ddp" for other in others if _computes_in(topology, other)]
        on_cpu = topology.device == "cpu"
        device = "CPU, which has no fast fp16" if on_cpu else f"{topology.device} device without it"
        yield bad_setting(
            "mixed_precision", f"{cause} on a {device}", f"Use mixed_precision={' or '.join(usable)}."
        )


def _weights_dtype(spec: RunSpec, topology: Topology) -> Iterator[Problem]:
    if spec.weights_dtype != "bf16" or PLUGINS[spec.plugin].shards:
        return
    precision = resolve_precision(spec, topology)
    leave = "Leave weights_dtype=auto"
    if spec.lora_rank:
        found = f"bf16 with lora_rank={spec.lora_rank}"
        yield bad_setting("weights_dtype", found, f"{leave}: a LoRA is trained in fp32, on a base in bf16.")
    elif not _computes_in(topology, "bf16"):
        yield no_hardware("weights_dtype", f"bf16 on a {topology.device} device without it", f"{leave}.")
    elif precision not in ("auto", "bf16"):
        found = f"bf16 with mixed_precision={precision}"
        yield bad_setting("weights_dtype", found, f"Set mixed_precision=bf16, or l{leave[1:]}.")


def _computes_in(topology: Topology, precision: str) -> bool:
    """Whether the device computes in this precision; true where it is unknown."""
    if precision == "no":
        return True
    known = topology.bf16 if precision == "bf16" else topology.fp16
    return precision in DEVICE_FACTS[topology.device].precisions and known is not False


def _of_subjects(spec: RunSpec) -> Iterator[_Rule]:
    """Settings of subjects and their classes."""
    subjects = spec.recipe_facts.has_subjects
    yield (
        spec.with_prior_preservation and not subjects,
        "with_prior_preservation",
        f"on with recipe={spec.recipe}",
        f"Prior preservation belongs to {with_subjects()}: remove one of them.",
    )
    yield (
        spec.concepts_list and not subjects,
        "concepts_list",
        f"given with recipe={spec.recipe}",
        f"Subjects belong to {with_subjects()}: remove one of them.",
    )
    yield (
        spec.with_prior_preservation and subjects and not (spec.class_prompt or spec.concepts_list),
        "class_prompt",
        "empty, with with_prior_preservation on",
        "Name the class of the subject, such as class_prompt=a photo of a dog.",
    )


def _of_data(spec: RunSpec) -> Iterator[_Rule]:
    """Settings of images, prompts and what is held out."""
    yield (
        spec.validation_split and spec.validation_data_dir,
        "validation_split",
        f"{spec.validation_split:g} with validation_data_dir={spec.validation_data_dir}",
        "The held-out images are those of the folder or a fraction of the dataset: remove one of them.",
    )
    yield (
        spec.aspect_ratio_buckets and spec.resolution % spec.bucket_reso_steps,
        "resolution",
        f"{spec.resolution} with bucket_reso_steps={spec.bucket_reso_steps}",
        "The sides of all buckets are multiples of bucket_reso_steps: the resolution must be one too.",
    )
    yield (
        spec.cache_latents in CACHED and not spec.center_crop,
        "cache_latents",
        f"{spec.cache_latents}, with random crops",
        "The latents of one crop are cached, so crops could not be random: "
        "set center_crop=1, or leave cache_latents=auto.",
    )
    yield (
        spec.cache_text_embeddings in CACHED and spec.train_text_encoder,
        "cache_text_embeddings",
        f"{spec.cache_text_embeddings}, with train_text_encoder on",
        "A text encoder in training changes at every step: leave cache_text_embeddings=auto.",
    )


def _of_schedule(spec: RunSpec) -> Iterator[_Rule]:
    """Settings of the learning rate over the run."""
    yield (
        spec.lr_warmup_steps >= spec.max_train_steps,
        "lr_warmup_steps",
        f"{spec.lr_warmup_steps} with num_train_step={spec.max_train_steps}",
        "The learning rate would never be reached: warm up for fewer steps than the run has.",
    )
    yield (
        spec.lr_warmup_steps and spec.lr_scheduler == "constant",
        "lr_warmup_steps",
        f"{spec.lr_warmup_steps} with lr_scheduler=constant",
        "That schedule has no warm-up: use lr_scheduler=constant_with_warmup.",
    )
    yield (
        spec.lr_scheduler == "polynomial" and spec.learning_rate <= _POLYNOMIAL_END,
        "lr_scheduler",
        f"polynomial with lr={spec.learning_rate:g}",
        f"That schedule ends at {_POLYNOMIAL_END:g}: use linear, or a larger lr.",
    )


def _optimizer(spec: RunSpec) -> Iterator[Problem]:
    facts = OPTIMIZERS[spec.optimizer]
    if spec.optimizer not in (possible := optimizers_of(spec.plugin)):
        yield bad_setting(
            "optimizer",
            f"{spec.optimizer} with plugin={spec.plugin}",
            f"That plugin updates shards of tensors: use optimizer={' or '.join(possible)}, or plugin=torch_ddp.",
        )
    if facts.rate_is_scale and facts.learning_rate:
        rates = {"lr": spec.learning_rate, "text_encoder_lr": spec.text_encoder_lr or spec.learning_rate}
        least = _LEAST_SCALE * facts.learning_rate
        wrong = [name for name, rate in rates.items() if rate < least or rate != spec.learning_rate]
        for name in wrong[:1]:
            yield bad_setting(
                name,
                f"{rates[name]:g} with optimizer={spec.optimizer}",
                f"{spec.optimizer.capitalize()} finds the rate itself, one for all, and multiplies it by this: "
                f"set lr={facts.learning_rate:g}, and no other.",
            )
