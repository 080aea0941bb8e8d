"""The records of a run: the plan, the settings that replay it, the environment."""

import json

import yaml

from sdjob.output.layout import OutputLayout
from sdlaunch.display import run_records
from tests.sdlaunch.workspace import clean_environment
from tests.support.launcher import prepare


def test_the_records_hold_the_plan_and_no_secret(workspace, tmp_path):
    secret = {"MY_TOKEN": "hf_abcdefgh", "instance_prompt": "hf_abcdefgh"}
    job, layout = prepare(workspace, **secret), OutputLayout(tmp_path / "output")
    run_records.write_all(job, layout, clean_environment(**workspace, **secret))
    written = {path.name: path.read_text() for path in layout.run.iterdir()}
    assert written.keys() == {"plan.json", "spec.yaml", "environment.json"}
    assert "hf_abcdefgh" not in "".join(written.values())
    assert json.loads(written["plan.json"])["argv"][1:3] == ["-m", "torch.distributed.run"]
    facts = json.loads(written["environment.json"])
    assert facts["environment"]["OUTPUT_DIR"] == workspace["OUTPUT_DIR"]
    assert facts["packages"]["numpy"]


def test_the_settings_replay_the_same_job(workspace, tmp_path):
    file = tmp_path / "spec.yaml"
    job = prepare(
        workspace, epoch="3", lr="1e-4", use_ema="1", validation_prompts='["a", "b"]', NODE_RANK="0"
    )
    file.write_text(run_records.replayable(job))
    replayed = yaml.safe_load(file.read_text())
    assert {"epoch": 3, "lr": 1e-4}.items() <= replayed.items()
    assert (
        not {"num_train_step", "NODE_RANK", "output_dir", "instance_data_dir", "CONFIG_FILE"}
        & replayed.keys()
    )
    assert prepare({}, CONFIG_FILE=str(file)).launch == job.launch
    fixed = run_records.replayable(prepare(workspace, epoch="3", num_train_step="7"))
    assert yaml.safe_load(fixed)["num_train_step"] == 7
