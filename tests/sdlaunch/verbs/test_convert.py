"""Tests of verbs/convert and sdlaunch/convert/simpletuner: exit codes, and an env file that can start a job."""

import time

import pytest

from sdlaunch import cli
from sdlaunch.verbs import convert as convert_verb
from tests.sdlaunch.workspace import HOME, launch, make_workspace

TOML = """
[anything]
pretrained_model_name_or_path = "{model}"
network_module = "networks.lora"
network_dim = 4
max_train_steps = 2
learning_rate = 1e-4
dataset_config = "data.toml"
"""
DATA = """
[general]
enable_bucket = false
[[datasets]]
resolution = 64
batch_size = 1
[[datasets.subsets]]
image_dir = "{data}"
class_tokens = "sks dog"
[[datasets.subsets]]
is_reg = true
image_dir = "{data}"
class_tokens = "dog"
"""


def convert(capsys, *argv):
    code = cli.main(["convert", *argv], {}, HOME)
    shown = capsys.readouterr()
    lines = [line for line in shown.out.splitlines() if line and not line.startswith("#")]
    return code, dict(line.split("=", 1) for line in lines), shown.err


def test_kohya_s_files(tmp_path, capsys):
    data = tmp_path / "data.toml"
    data.write_text(DATA.format(data="/d"))
    (tmp_path / "lora.toml").write_text(TOML.format(model="/m"))
    code, found, said = convert(capsys, str(tmp_path / "lora.toml"))
    assert (code, "0 without an equivalent" in said) == (0, True)
    expected = {
        "recipe": "dreambooth",
        "model_name": "/m",
        "DATASET_DIR": "/d",
        "instance_prompt": "sks dog",
        "class_data_dir": "/d",
        "class_prompt": "dog",
        "with_prior_preservation": "1",
        "lora_rank": "4",
        "num_train_step": "2",
    }
    assert {name: found[name] for name in expected} == expected
    words = [
        "--",
        "python",
        "train_db.py",
        f"--dataset_config={data}",
        "--max_train_steps=7",
        "--resolution=128",
    ]
    code, found, _ = convert(capsys, *words)
    assert (code, found["num_train_step"], found["resolution"], found["instance_prompt"]) == (
        0,
        "7",
        "128",
        "sks dog",
    )


GUI = """
cache_latents = true
cache_latents_to_disk = true
caption_extension = ".txt"
clip_skip = 1
dynamo_backend = "no"
epoch = 15
loss_type = "l2"
lr_scheduler_args = []
max_timestep = 1000
max_token_length = 75
max_train_epochs = 15
max_train_steps = 1600
network_args = []
network_dim = 8
network_module = "networks.lora"
noise_offset_type = "Original"
sample_prompts = ""
text_encoder_lr = [ 5e-5,]
train_data_dir = "/d"
unet_lr = 1e-4
"""


def test_a_file_as_a_graphical_interface_writes_it_fills_in_every_key(tmp_path, capsys):
    (tmp_path / "gui.toml").write_text(GUI)
    code, found, said = convert(capsys, str(tmp_path / "gui.toml"))
    assert (code, "no equivalent: noise_offset_type" in said, "1 without an equivalent" in said) == (
        64,
        True,
        True,
    )
    assert {
        name: found[name] for name in ("cache_latents", "epoch", "lr", "text_encoder_lr", "DATASET_DIR")
    } == {
        "cache_latents": "disk",
        "epoch": "15",
        "lr": "0.0001",
        "text_encoder_lr": "5e-05",
        "DATASET_DIR": "/d",
    }
    assert "num_train_step" not in found


ACCELERATE = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_sharding_strategy: 1
mixed_precision: 'bf16'
machine_rank: 1
num_machines: 2
num_processes: 16
tpu_env: []
"""


def test_a_file_of_accelerate_is_read_next_to_the_script(tmp_path, capsys):
    (tmp_path / "default_config.yaml").write_text(ACCELERATE)
    script = tmp_path / "run.sh"
    script.write_text(
        "accelerate launch --config_file default_config.yaml --machine_rank=0 train_dreambooth.py"
    )
    code, found, said = convert(capsys, str(script))
    expected = {
        "plugin": "fsdp",
        "mixed_precision": "bf16",
        "NNODES": "2",
        "NPROC_PER_NODE": "8",
        "NODE_RANK": "0",
    }
    assert {name: found[name] for name in expected} == expected
    assert code == 64 and "no equivalent: fsdp_config = " in said
    assert not {"accelerate_config", "launcher"} & {*found}
    (tmp_path / "default_config.yaml").write_text("- not a mapping")
    assert convert(capsys, str(script))[1]["accelerate_config"] == "default_config.yaml"


def test_a_full_training_of_kohya_does_not_say_its_script(tmp_path, capsys):
    (tmp_path / "a.toml").write_text(
        "max_train_steps = 2\nnetwork_train_unet_only = false\nconfig_file = 'a'\n"
    )
    code, _, said = convert(capsys, str(tmp_path / "a.toml"))
    assert code == 0 and "train_text_encoder=1" in said


SIMPLETUNER = """{
    "--model_type": "lora", "--model_family": "sd1x", "--pretrained_model_name_or_path": "/m", "--num_train_epochs": 0,
    "--max_train_steps": 100, "--checkpoint_step_interval": 50, "--optimizer": "adamw_bf16", "learning_rate": "1e-4",
    "--data_backend_config": "config/multidatabackend.json", "--report_to": "wandb", "--lora_type": "standard",
    "--validation_prompt": "a, b", "--caption_dropout_probability": 0.1, "--gradient_checkpointing": "true"
}"""


def test_simpletuner_s_file(tmp_path, capsys):
    (tmp_path / "config.json").write_text(SIMPLETUNER)
    code, found, said = convert(capsys, str(tmp_path / "config.json"))
    assert code == 64 and "1 without an equivalent" in said and "data_backend_config" in said
    assert found == {
        "recipe": "text_to_image",
        "model_name": "/m",
        "num_train_step": "100",
        "checkpointing_steps": "50",
        "optimizer": "adamw",
        "lr": "1e-4",
        "validation_prompts": "a, b",
        "proportion_empty_prompts": "0.1",
        "gradient_checkpointing": "true",
        "lora_rank": "16",
        "report_to": "wandb",
    }


@pytest.mark.parametrize(
    ("content", "argv", "said"),
    [
        ("a = [", ["f.toml"], "Fix the TOML syntax"),
        ("a = " + "[" * 5000, ["f.toml"], "Fix the TOML syntax"),
        ("[1]", ["f.json"], "not an object"),
        ("{", ["f.json"], "Fix the JSON syntax"),
        ("echo", ["f.sh"], "no training script"),
        ("", ["missing.sh"], "No such file"),
        ("", [], "nothing to convert"),
        ("", ["f.sh", "lr=1"], "convert with lr"),
        (".".join("a" * 60_000) + " = 1", ["f.toml"], "its reader took longer than 0.5 s"),
        ("#" * 140_000, ["f.toml"], "larger than 128 KiB"),
        ("B=" + "x" * 60_000 + "\n" + "A=$B\n" * 60, ["f.sh"], "the words have 2,1"),
    ],
)
def test_what_cannot_be_converted_prints_nothing(tmp_path, capsys, monkeypatch, content, argv, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(convert_verb, "_PATIENCE", 0.5)
    for name in argv[:1]:
        if name != "missing.sh":
            (tmp_path / name).write_text(content)
    code, found, errors = convert(capsys, *argv)
    assert (code, found) == (64, {}) and said in errors and "Traceback" not in errors


@pytest.mark.parametrize("number", ["²", "9" * 5000, "abc"])
def test_a_number_that_is_none_or_too_long_is_no_crash(tmp_path, capsys, number):
    (tmp_path / "a.sh").write_text(
        f"accelerate launch --num_processes={number} train_dreambooth.py --checkpointing_steps={number} --scale_lr "
        f"--learning_rate={number} --train_batch_size={number}"
    )
    (tmp_path / "a.toml").write_text(
        f'max_train_epochs = "{number}"\nnum_repeats = "{number}"\nseed = 0x{"f" * 5000}\n'
        f'lr_warmup_steps = "0.1"\nmax_train_steps = "{number}"\n'
    )
    for name in ("a.sh", "a.toml"):
        assert convert(capsys, str(tmp_path / name))[0] == 64


def test_the_time_of_many_words_and_keys_does_not_grow_with_their_square(tmp_path, capsys):
    (tmp_path / "a.sh").write_text("python train_dreambooth.py --lr" + " 1" * 60_000)
    (tmp_path / "a.toml").write_text(
        "".join(f"a{n} = 1\n" for n in range(8000)) + 'prior = "a' + " " * 40_000 + 'b"'
    )
    begin = time.process_time()
    for name in ("a.sh", "a.toml"):
        assert convert(capsys, str(tmp_path / name))[0] == 64
    assert time.process_time() - begin < 10


def test_a_login_in_a_value_is_hidden(capsys):
    url = "--tracker_project_name=https://me:geheim@host/x"
    code, found, said = convert(capsys, "--", "python", "train_dreambooth.py", url)
    assert (code, found["tracker_project_name"]) == (0, "https://[redacted]@host/x")
    assert "geheim" not in said


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\u202eb"])
def test_a_value_that_a_terminal_obeys_is_not_printed(capsys, text):
    flags = ("--instance_prompt", text, "--seed=3")
    code, found, said = convert(capsys, "--", "python", "train_dreambooth.py", *flags)
    assert (code, found["seed"]) == (64, "3") and "instance_prompt" not in found
    assert text not in said and "instance_prompt: An env file cannot hold this value" in said


@pytest.mark.parametrize(("subsets", "said_as"), [("3", "3"), ("[1, 2]", "1 2")])
def test_subsets_that_are_no_tables_are_said(tmp_path, capsys, subsets, said_as):
    (tmp_path / "a.toml").write_text(
        f"network_train_unet_only = false\n[[datasets]]\nresolution = 512\nsubsets = {subsets}\n"
    )
    code, found, said = convert(capsys, str(tmp_path / "a.toml"))
    assert (code, found["resolution"]) == (64, "512") and f"subsets = {said_as}" in said


def test_what_has_no_equivalent_is_64_with_the_rest_printed(capsys):
    code, found, said = convert(capsys, "--", "python", "train_dreambooth.py", "--dream_training", "--seed=3")
    assert (code, found["seed"]) == (64, "3")
    assert "no equivalent: --dream_training" in said and "snr_gamma=5" in said


def test_the_env_file_passes_plan(tmp_path):
    """Through bash, on mounts of a tiny model; a prompt with characters that a shell would act on."""
    mounts = make_workspace(tmp_path)
    script = tmp_path / "train.sh"
    script.write_text(
        f"MODEL={mounts['MODEL_DIR']}/tiny\nDATA={mounts['DATASET_DIR']}/images\n"
        "accelerate launch --num_processes=2 train_dreambooth.py --pretrained_model_name_or_path=$MODEL \\\n"
        "  --instance_data_dir=$DATA --instance_prompt='a $(touch made); `x` & dog' --resolution=64 \\\n"
        f"  --max_train_steps=3 --train_batch_size=1 --output_dir={tmp_path}/out --checkpointing_steps=99999999999\n"
    )
    done = launch("convert", str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "job.env").write_text(done.stdout)
    planned = launch("plan", "--env-file", str(tmp_path / "job.env"), cwd=tmp_path, device="cpu")
    assert planned.returncode == 0, planned.stdout
    assert "a $(touch made); `x` & dog" in planned.stdout and "--nproc-per-node=2" in planned.stdout
    assert not (tmp_path / "made").exists()
