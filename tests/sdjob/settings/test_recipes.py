"""Tests of the facts of recipes."""

from typing import get_args

import pytest

from sdjob.settings.choices import Recipe
from sdjob.settings.recipes import RECIPES, with_subjects
from sdjob.settings.run_spec import RunSpec
from sdtrain import recipes


def test_settings_facts_and_worker_know_the_same_recipes():
    assert set(RECIPES) == set(get_args(Recipe)) == set(recipes.RECIPES)


def test_a_setting_names_the_recipes_with_subjects():
    assert with_subjects() == "recipe=dreambooth"


@pytest.mark.parametrize(("recipe", "folder"), [("dreambooth", "/subject"), ("text_to_image", "/captioned")])
def test_each_recipe_has_its_own_data_setting(recipe, folder):
    spec = RunSpec(
        pretrained_model_name_or_path="/m",
        output_dir="/o",
        recipe=recipe,
        instance_data_dir="/subject",
        train_data_dir="/captioned",
    )
    assert spec.data_dir == folder
