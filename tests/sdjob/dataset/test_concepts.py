"""A list of subjects: what is read from it, and what is said when it is wrong."""

import pytest

from sdjob.dataset.concepts import concepts_of, read_concepts
from sdjob.problems import JobError
from tests.support.specs import spec

GOOD = """
- instance_data_dir: dog
  instance_prompt: a photo of sks dog
  class_prompt: a photo of a dog
- instance_data_dir: /elsewhere/cat
  instance_prompt: a photo of zwx cat
  class_prompt: a photo of a cat
  class_data_dir: cats
  weight: 0.5
"""


def test_a_list(tmp_path):
    (tmp_path / "concepts.yaml").write_text(GOOD)
    dog, cat = read_concepts(tmp_path / "concepts.yaml", prior=True)
    assert dog.instance_data_dir == str(tmp_path / "dog")
    assert (dog.class_data_dir, dog.weight) == (None, 1.0)
    assert (cat.instance_data_dir, cat.class_data_dir) == ("/elsewhere/cat", str(tmp_path / "cats"))
    assert cat.weight == 0.5


def test_without_a_list_the_settings_are_the_one_subject():
    (concept,) = concepts_of(spec(instance_data_dir="d", instance_prompt="p", class_prompt="c"))
    assert (concept.instance_data_dir, concept.instance_prompt, concept.class_prompt) == ("d", "p", "c")
    with pytest.raises(JobError, match="--instance_data_dir"):
        concepts_of(spec())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {a: [", ["is not YAML"]),
        ("instance_data_dir: dog", ["is not a list of subjects"]),
        ("[]", ["is not a list of subjects"]),
        ("- dog", ["entry 1", "instance_data_dir"]),
        ("- instance_data_dir: dog", ["entry 1, instance_prompt: Field required"]),
        (
            "- {instance_data_dir: d, instance_prompt: p, class_promt: c, weight: 0}",
            ["entry 1, class_promt: Extra inputs", "entry 1, weight: Input should be greater than 0"],
        ),
        (
            "- {instance_data_dir: d, instance_prompt: p}\n- {instance_data_dir: d, instance_prompt: p}",
            ["entry 1 has no class_prompt", "entry 2 has no class_prompt"],
        ),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_everything_that_is_wrong_is_said_at_once(text, words, tmp_path):
    file = tmp_path / "concepts.yaml"
    file.write_text(text)
    with pytest.raises(JobError) as caught:
        read_concepts(file, prior=True)
    assert caught.value.code == 66
    assert all(str(file) in str(problem) for problem in caught.value.problems)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(JobError, match="is missing"):
        read_concepts(tmp_path / "none.yaml", prior=False)
