"""Several subjects of one DreamBooth run: a list in a YAML (or JSON) file, checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails

from sdjob import reading
from sdjob.dataset.formats import DatasetInfo
from sdjob.files import read_file, shown
from sdjob.formatting import counted
from sdjob.problems import JobError, Problem, bad_input, bad_setting
from sdjob.settings.fields import DataPath, Text
from sdjob.settings.run_spec import RunSpec

_SHOWN = 50  # mistakes
_FORM = (
    "write a list, each entry with instance_data_dir and instance_prompt, and optionally class_prompt, "
    "class_data_dir and weight"
)


class Concept(BaseModel):
    """One subject. Folders are absolute, or relative to the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance_data_dir: DataPath
    instance_prompt: Text
    class_data_dir: str | None = None  # None: generated
    class_prompt: str | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0  # the weight of its images in the loss

    @field_validator("instance_data_dir", "class_data_dir")
    @classmethod
    def _rooted(cls, folder: str | None, info: ValidationInfo) -> str | None:
        """The absolute path; the context is the folder of the file."""
        return str(info.context / folder) if info.context and folder else folder

    @property
    def summary(self) -> str:
        """What must not change when a run resumes, besides the images."""
        return f"{self.instance_prompt!r} × {self.weight:g}, class {self.class_prompt!r}"


_LIST: TypeAdapter[tuple[Concept, ...]] = TypeAdapter(
    Annotated[tuple[Concept, ...], Field(min_length=1, max_length=1000)]
)


def concepts_of(spec: RunSpec) -> tuple[Concept, ...]:
    """The subjects of a run: those of its list, or the one that its settings describe. Raises JobError."""
    if spec.concepts_list:
        return read_concepts(Path(spec.concepts_list), prior=spec.with_prior_preservation)
    if spec.instance_data_dir is None:
        remedy = "Name the folder of the images with --instance_data_dir."
        raise JobError(bad_setting("instance_data_dir", "not given", remedy))
    return (
        Concept(
            instance_data_dir=spec.instance_data_dir,
            instance_prompt=spec.instance_prompt,
            class_data_dir=spec.class_data_dir,
            class_prompt=spec.class_prompt,
        ),
    )


def read_concepts(path: Path, *, prior: bool) -> tuple[Concept, ...]:
    """The list in a file. Raises JobError with everything that is wrong with it."""
    import yaml

    try:
        text = read_file(path).decode()
        found = _LIST.validate_python(reading.yaml_of(text, yaml.SafeLoader), context=path.parent.absolute())
    except ValidationError as error:
        details = error.errors()[:_SHOWN]
        raise JobError(bad_input(shown(path), _found(detail), _FORM) for detail in details) from None
    except ValueError as error:
        raise JobError(bad_input(shown(path), f"is not YAML ({error})", _FORM)) from None
    remedy = "name the class of each subject, or leave with_prior_preservation off"
    if missing := [
        bad_input(shown(path), f"entry {number} has no class_prompt", remedy)
        for number, concept in enumerate(found, 1)
        if prior and not concept.class_prompt
    ]:
        raise JobError(missing)
    return found


def _found(detail: ErrorDetails) -> str:
    where = [str(part) if isinstance(part, str) else f"entry {part + 1}" for part in detail["loc"]]
    return f"{', '.join(where)}: {detail['msg']}" if where else "is not a list of subjects"


def too_few_class_images(spec: RunSpec, info: DatasetInfo) -> list[Problem]:
    """The problem of a given folder with fewer images of the class than asked for."""
    if info.num_examples >= spec.num_class_images:
        return []
    found = f"{counted(info.num_examples, 'image')} in {shown(info.path)}, num_class_images={spec.num_class_images}"
    remedy = "Add images, lower num_class_images, or leave class_data_dir empty to have them generated."
    return [bad_input("class_data_dir", found, remedy)]
