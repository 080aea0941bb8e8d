"""Several subjects: each image with the prompt and weight of its own, on any number of processes.

Tests of sdtrain.recipes.base and sdtrain.recipes.dreambooth.
"""

import json

import pytest

from tests.sdtrain import reference
from tests.sdtrain.reference import Images
from tests.support.worker import DEFAULTS, losses, scalars, snapshot

PROMPTS = ("a photo of sks cross", "a drawing of zwx")


@pytest.fixture
def concepts(tmp_path, instance, captioned):
    def write(*more: dict) -> str:
        folders = (instance, captioned)
        entries = [
            {"instance_data_dir": str(folder), "instance_prompt": prompt, **extra}
            for folder, prompt, extra in zip(folders, PROMPTS, more, strict=True)
        ]
        (tmp_path / "concepts.yaml").write_text(json.dumps(entries))  # YAML is more than JSON
        return str(tmp_path / "concepts.yaml")

    return write


def test_two_subjects(train, concepts, eps_model, instance, captioned):
    """Against the reference, on the images of both with the prompts of each; then on two processes, cached."""
    settings = {"recipe": "dreambooth", "max_train_steps": 5, "center_crop": True}
    alone = train("alone", **settings, concepts_list=concepts({}, {}), train_batch_size=2)
    one, other = (
        Images.read("instance", folder, 32, prompt)
        for folder, prompt in zip((instance, captioned), PROMPTS, strict=True)
    )
    joined = Images("instance", one.pixels + other.pixels, one.captions + other.captions)
    seed, lr = DEFAULTS["seed"], DEFAULTS["learning_rate"]
    wanted = reference.train(eps_model, [joined], steps=5, seed=seed, lr=lr, batch=2)
    assert losses(alone) == pytest.approx(wanted.losses, rel=1e-5)
    weighted = concepts({"weight": 1.0}, {"weight": 0.0001})
    both = {"ranks": 2, "cache_latents": "memory", "cache_text_embeddings": "memory"}
    shared = train("shared", **settings, **both, concepts_list=weighted)
    assert losses(shared)[0] < losses(alone)[0]


def test_two_processes_with_classes(train, concepts, of_class):
    """Each image keeps its prompt and weight whichever process has it; one class is generated, the other given."""
    file = concepts(
        {"class_prompt": "a cross", "weight": 0.5},
        {"class_prompt": "a shape", "class_data_dir": str(of_class)},
    )
    settings = {
        "recipe": "dreambooth",
        "concepts_list": file,
        "with_prior_preservation": True,
        "num_class_images": 3,
        "prior_loss_weight": 0.7,
        "sample_batch_size": 2,
        "proportion_empty_prompts": 0.3,
        "max_train_steps": 5,
    }
    alone = train("alone", train_batch_size=4, **settings)
    both = train("both", ranks=2, gradient_accumulation_steps=2, **settings)
    assert snapshot(both / "class_images") == snapshot(alone / "class_images")
    assert losses(both) == pytest.approx(losses(alone), rel=1e-5)
    norms, others = (scalars(output)["train/grad_norm"] for output in (alone, both))
    assert others == pytest.approx(norms, rel=1e-4)


def test_each_class_has_images_of_its_own(train, concepts, of_class, capsys):
    file = concepts({"class_prompt": "a cross"}, {"class_prompt": "a shape", "class_data_dir": str(of_class)})
    settings = {"recipe": "dreambooth", "with_prior_preservation": True, "num_class_images": 2}
    output = train(**settings, concepts_list=file)
    assert len(snapshot(output / "class_images")) == 2  # of the first class alone
    other = concepts(
        {"class_prompt": "a cross"}, {"class_prompt": "a thing", "class_data_dir": str(of_class)}
    )
    train(code=64, **settings, concepts_list=other, max_train_steps=5)
    assert "concepts_list" in capsys.readouterr().err
