"""A table of mistakes, each as a person makes it: its exit code, and what the message must say."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import entrypoint
from sdlaunch.cluster import devices
from tests.sdjob.model.test_pipeline import LFS, UNET, make
from tests.sdlaunch.workspace import clean_environment, make_workspace

MODEL, DATA = "model/tiny", "dataset/images"


@dataclass(frozen=True)
class Mistake:
    """What somebody did, and the answer. `{root}` in a value stands for the folder of the mounts."""

    name: str
    code: int
    words: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    spoil: Callable[[Path], object] | None = None


def wrong(
    code: int, *words: str, name: str = "", flags: tuple[str, ...] = (), spoil=None, **env: str
) -> Mistake:
    shown = name or " ".join([*flags, *(f"{key}={value}" for key, value in env.items())])
    return Mistake(shown, code, words, env, flags, spoil)


def text(path: str, content: str | bytes) -> Callable[[Path], object]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda root: (root / path).write_bytes(raw)


def cut(path: str, count: int) -> Callable[[Path], object]:
    return lambda root: os.truncate(root / path, count)


def emptied(path: str) -> Callable[[Path], object]:
    return lambda root: (shutil.rmtree(root / path), (root / path).mkdir())


def config(text_of: str, *words: str, code: int = 64, name: str) -> Mistake:
    return wrong(code, *words, name=name, spoil=text("job.yaml", text_of), CONFIG_FILE="{root}/job.yaml")


def env_file(text_of: str, *words: str, code: int = 64, name: str) -> Mistake:
    return wrong(code, *words, name=name, spoil=text("job.env", text_of), ENV_FILE="{root}/job.env")


def only_pickles(root: Path) -> None:
    (root / MODEL / UNET).rename(root / MODEL / "unet" / "diffusion_pytorch_model.bin")


def reconfigured(part: str, **values: object) -> Callable[[Path], object]:
    """Other values in the configuration of a part."""

    def change(root: Path) -> None:
        path = root / MODEL / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def captioned(*captions: str) -> Callable[[Path], object]:
    """The first images with these captions."""

    def change(root: Path) -> None:
        for number in range(5):
            (root / DATA / f"{number}.txt").write_text(captions[number % len(captions)])

    return change


def class_of(name: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        path = root / MODEL / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": name}))

    return change


SETTINGS = [
    wrong(64, "lr: found 'fast'", "environment: lr", "Write a number, such as 1e-5", lr="fast"),
    wrong(64, "lr: found '-1e-5'", lr="-1e-5"),
    wrong(64, "lr: found '0'", "Write a number above 0", lr="0"),
    wrong(64, "lr: found 'nan'", lr="nan"),
    wrong(64, "lr: found '1e-5,'", lr="1e-5,"),
    wrong(64, "batch_size: found '0'", batch_size="0"),
    wrong(64, "batch_size: found '1.5'", batch_size="1.5"),
    wrong(64, "batch_size: found 'four'", "Write a whole number, such as 4", batch_size="four"),
    wrong(64, "num_train_step: found '15e-1'", num_train_step="15e-1"),
    wrong(64, "num_train_step: found '1e999'", num_train_step="1e999"),
    wrong(64, "num_train_step: found '-5'", num_train_step="-5"),
    wrong(64, "num_train_step: found '0'", num_train_step="0"),
    wrong(64, "resolution: found '500'", "multiple of 8", resolution="500"),
    wrong(64, "resolution: found '512x512'", resolution="512x512"),
    wrong(64, "seed: found '-1'", seed="-1"),
    wrong(64, "use_ema: found 'maybe'", "Write 1 or 0", use_ema="maybe"),
    wrong(
        64,
        "plugin: found 'ddp'",
        "Did you mean torch_ddp? Write one of none, torch_ddp, torch_ddp_fp16",
        plugin="ddp",
    ),
    wrong(64, "shm_size: found '8'", "Write it in the form that is described", "such as 8g", shm_size="8"),
    wrong(
        64,
        "validation_prompts: found '[a dog'",
        'a JSON list such as ["one", "two"]',
        validation_prompts="[a dog",
    ),
    wrong(64, "adam_beta2: found '1'", "Write a number below 1", adam_beta2="1"),
    wrong(64, "plugin: found 'torch_dpp'", "Did you mean torch_ddp?", plugin="torch_dpp"),
    wrong(64, "recipe: found 'dreamboth'", "Did you mean dreambooth?", recipe="dreamboth"),
    wrong(64, "device: found 'cdua'", "Did you mean cuda?", device="cdua"),
    wrong(64, "device: found 'cuda:0'", device="cuda:0"),
    wrong(64, "mixed_precision: found 'int8'", mixed_precision="int8"),
    wrong(64, "lr_scheduler: found 'sine'", lr_scheduler="sine"),
    wrong(64, "attention: found 'turbo'", attention="turbo"),
    wrong(64, "lora_rank: found '-4'", lora_rank="-4"),
    wrong(64, "adam_beta1: found '1'", adam_beta1="1"),
    wrong(64, "dataloader_num_workers: found '1000'", dataloader_num_workers="1000"),
    wrong(64, "NPROC_PER_NODE", "two", NPROC_PER_NODE="two"),
    wrong(64, "NPROC_PER_NODE", NPROC_PER_NODE="0"),
    wrong(64, "stop_grace: found '-1'", stop_grace="-1"),
    wrong(64, "max_restarts: found 'yes'", max_restarts="yes"),
    wrong(64, "hang_timeout: found 'inf'", hang_timeout="inf"),
    wrong(64, "MASTER_PORT: found '99999'", MASTER_PORT="99999"),
    wrong(64, "MASTER_PORT: found 'tcp://", "enableServiceLinks: false", MASTER_PORT="tcp://10.0.0.1:29400"),
]
NAMES = [
    wrong(64, "bacth_size", "probably batch_size", bacth_size="2"),
    wrong(64, "num_steps", "probably num_train_step", num_steps="20"),
    wrong(64, "lr_warmup", "probably lr_warmup_steps", lr_warmup="20"),
    wrong(64, "warmup_steps", "probably lr_warmup_steps", warmup_steps="20"),
    wrong(64, "NPROC_PERNODE", "probably NPROC_PER_NODE", NPROC_PERNODE="2"),
    wrong(64, "OUTPUT_DRI", "probably OUTPUT_DIR", OUTPUT_DRI="/x"),
    wrong(64, "learning_rat", "Write learning_rate", flags=("--learning_rat=1",)),
    wrong(64, "neither a verb nor a setting", flags=("trian",)),
    wrong(64, "Write --lr=VALUE", flags=("--lr",)),
    wrong(64, "Ask for one thing at a time", flags=("plan",)),
    wrong(64, "train_data_dir", "Write DATASET_DIR", flags=("train_data_dir=/x",)),
    wrong(64, "flash_attention", "keep one of them", flash_attention="1", use_sdp="0"),
    wrong(64, "batch_size", "'1'", "'2'", "keep one of them", batch_size="1", train_batch_size="2"),
    wrong(64, "lr", "keep one of them", flags=("lr=1e-4", "--learning-rate=1e-5")),
    env_file("bacth_size=2\n", "probably batch_size", name="misspelled in an env file"),
    env_file("lr 1e-5\n", "line 1", "Write NAME=value", name="no = in an env file"),
    env_file("instance_prompt='a' dog'\n", "no quotes", name="quotes in an env file"),
    wrong(64, "lr: found 'fast'", name="a wrong value in quotes", lr=" 'fast' "),
    env_file("lr=1e-5 # slow\n", "no comment after it", name="a comment behind a value"),
    env_file("lr=1e-5\nlr=1e-4\n", "keep one of them", name="twice in an env file"),
    wrong(64, "ENV_FILE", "No such file", ENV_FILE="{root}/none.env"),
    wrong(64, "CONFIG_FILE", "Is a directory", CONFIG_FILE="{root}"),
    config("lr: [1\n", "line 2", "Fix the YAML", name="YAML that does not parse"),
    config("lr: 1\n\tbatch_size: 2\n", "Fix the YAML", name="a tab in YAML"),
    config("- lr\n", "not a mapping", name="a YAML list"),
    config("bacth_size: 2\n", "Write batch_size", name="misspelled in YAML"),
    config("lr: {base: 1}\n", "nested", name="nested YAML"),
    config("batch_size: 1\ntrain_batch_size: 2\n", "keep one of them", name="two aliases in YAML"),
    wrong(
        64, "not UTF-8", name="bytes in YAML", spoil=text("b.yaml", b"a: \xff"), CONFIG_FILE="{root}/b.yaml"
    ),
]
COMBINATIONS = [
    wrong(64, "class_prompt", with_prior_preservation="1"),
    wrong(64, "xformers on a CPU", attention="xformers"),
    wrong(
        64, "whole with train_text_encoder on", "use compile=blocks", compile="whole", train_text_encoder="1"
    ),
    wrong(64, "mixed_precision", "no fast fp16", mixed_precision="fp16"),
    wrong(64, "plugin=torch_ddp_fp16", plugin="torch_ddp_fp16", mixed_precision="bf16"),
    wrong(64, "none with 2 processes", plugin="none", NPROC_PER_NODE="2"),
    wrong(64, "placement", "a plugin that has it: gemini", placement="cpu"),
    wrong(64, "optimizer", "adafactor with plugin=fsdp", optimizer="adafactor", plugin="fsdp"),
    wrong(64, "lr", "lr=1", optimizer="prodigy", lr="1e-4"),
    wrong(64, "cache_latents", "center_crop=1", cache_latents="1"),
    wrong(64, "rescale_betas_zero_snr", "predicts epsilon", rescale_betas_zero_snr="1"),
    wrong(64, "lr_warmup_steps", lr_scheduler="linear", lr_warmup_steps="400"),
    wrong(64, "That schedule has no warm-up", lr_scheduler="constant", lr_warmup_steps="4"),
    wrong(64, "resume", "no complete checkpoint", resume="must"),
    wrong(64, "resume", "is not a folder", resume="/nonexistent"),
]
CLUSTER = [
    wrong(64, "NODE_RANK", "use 0 to 1", NNODES="2", NODE_RANK="2", MASTER_ADDR="a"),
    wrong(64, "NODE_RANK: not set, with 2 nodes", NNODES="2", MASTER_ADDR="a"),
    wrong(64, "MASTER_ADDR: not set", NNODES="2", NODE_RANK="1"),
    wrong(64, "without a number of nodes", NODE_RANK="1"),
    wrong(64, "contradict", NNODES="2", PET_NNODES="4", NODE_RANK="1", MASTER_ADDR="a"),
    wrong(64, "PET_NNODES", "of at least 1", PET_NNODES="0"),
    wrong(
        64, "batch_size", "Write at most 1000000000", batch_size="9" * 400, name="a batch beyond all bounds"
    ),
    wrong(64, "torchrun started this", LOCAL_RANK="0", TORCHELASTIC_RUN_ID="x"),
    wrong(69, "no NVIDIA device", device="cuda"),
    wrong(
        69,
        "memory: at least",
        "of the host for each process",
        "batch_size=",
        batch_size="8388608",
        dataloader_num_workers="0",
        name="a batch that no memory holds",
    ),
]
MOUNTS = [
    wrong(66, "MODEL_DIR", "does not exist", MODEL_DIR="/nonexistent"),
    wrong(66, "DATASET_DIR", "does not exist", DATASET_DIR="relative/path"),
    wrong(66, "MODEL_DIR", "is a file", name="a file as MODEL_DIR", MODEL_DIR="{root}/" + MODEL + "/model_index.json"),
    wrong(66, "DATASET_DIR", "is empty", name="an empty mount", spoil=emptied("dataset")),
    wrong(66, "is empty", name="no images", spoil=emptied(DATA), dataset_name="images"),
    wrong(66, "does not exist", "holds tiny", "Did you mean tiny?", model_name="tinny"),
    wrong(66, "does not exist", "Set dataset_name to a folder below", dataset_name="poekmon"),
    wrong(66, "Did you mean images?", dataset_name="imagess"),
    wrong(66, "Leave model_name empty: the files are in {root}/model/tiny itself",
          name="the mount is the model", MODEL_DIR="{root}/model/tiny", model_name="nope"),
    wrong(66, "Leave dataset_name empty: the files are in {root}/dataset/images itself",
          name="the mount is the dataset", DATASET_DIR="{root}/dataset/images", dataset_name="nope"),
    wrong(66, "does not exist", "set offline=0 to download CompVis/stable-diffusion-v1-4 from the hub",
          model_name="CompVis/stable-diffusion-v1-4"),
    wrong(66, "set offline=0 to download someone/images from the hub", dataset_name="someone/images",
          DATASET_DIR="/nonexistent"),
    wrong(66, "holds 2 pipelines", "Set model_name", name="two models", spoil=lambda root: make(root / "model/b")),
    wrong(66, "is truncated", name="truncated weights", spoil=cut(f"{MODEL}/{UNET}", 300)),
    wrong(66, "is empty (0 bytes)", name="empty weights", spoil=cut(f"{MODEL}/{UNET}", 0)),
    wrong(66, "Git LFS pointer", name="LFS pointer", spoil=text(f"{MODEL}/{UNET}", LFS)),
    wrong(66, "only as a pickle", "allow_pickle=1", name="pickled weights", spoil=only_pickles),
    wrong(66, "vae", "is missing", name="no VAE", spoil=lambda root: shutil.rmtree(root / MODEL / "vae")),
    wrong(66, "not readable JSON", name="broken JSON", spoil=text(f"{MODEL}/unet/config.json", "{")),
    wrong(66, "StableDiffusion3Pipeline", name="a model of another kind", spoil=class_of("StableDiffusion3Pipeline")),
    wrong(66, "text_encoder_2: is missing", "tokenizer_2: is missing", name="half of an XL model",
          spoil=class_of("StableDiffusionXLPipeline")),
    wrong(66, "prediction_type", name="sample", spoil=text(f"{MODEL}/scheduler/scheduler_config.json",
                                                          '{"prediction_type": "sample"}')),
    wrong(66, "num_train_timesteps is 0", name="no timesteps", spoil=reconfigured("scheduler", num_train_timesteps=0)),
    wrong(66, "beta_schedule is 'cosine'", name="betas", spoil=reconfigured("scheduler", beta_schedule="cosine")),
    wrong(66, "NaN is not a finite number", name="a beta", spoil=reconfigured("scheduler", beta_start=float("nan"))),
    wrong(66, "trained_betas is not a list of 1000 numbers", name="too few betas",
          spoil=reconfigured("scheduler", trained_betas=[0.5, 0.5])),
    wrong(66, "Infinity is not a finite number", name="no scale",
          spoil=reconfigured("vae", scaling_factor=float("inf"))),
    wrong(66, "cross_attention_dim=6", "hidden_size=4",
          name="the U-Net of another text encoder", spoil=reconfigured("unet", cross_attention_dim=6)),
    wrong(66, "in_channels=4", "latent_channels=16", name="the VAE of another model",
          spoil=reconfigured("vae", latent_channels=16)),
    wrong(66, "token ids up to 49407", name="the tokenizer of another model",
          spoil=text(f"{MODEL}/tokenizer/vocab.json", '{"a": 49407}')),
    wrong(66, "4.png", "is not an image", name="a broken image", spoil=text(f"{DATA}/4.png", b"no")),
    wrong(66, "recipe=dreambooth", recipe="text_to_image"),
    wrong(66, "all of 5 captions are empty", "recipe=dreambooth", name="empty captions", spoil=captioned(""),
          recipe="text_to_image"),
    wrong(66, "does not hold <|startoftext|> and <|endoftext|>", name="a tokenizer without its marks",
          spoil=text(f"{MODEL}/tokenizer/vocab.json", '{"a": 0}')),
    wrong(66, "class_data_dir", with_prior_preservation="1", class_prompt="dog", class_data_dir="/nonexistent"),
    wrong(66, "concepts.yaml", "is missing", concepts_list="/nonexistent/concepts.yaml"),
    wrong(66, "entry 1, instance_prompt", name="a subject without a prompt", concepts_list="{root}/concepts.yaml",
          spoil=text("concepts.yaml", "- instance_data_dir: dataset/images")),
    wrong(66, "no_such_folder", name="a subject without images", concepts_list="{root}/concepts.yaml",
          spoil=text("concepts.yaml", "- {instance_data_dir: no_such_folder, instance_prompt: a}")),
    wrong(66, "PROJECT_DIR", PROJECT_DIR="/nonexistent"),
    wrong(73, "OUTPUT_DIR", "is a file", name="a file as output", spoil=text("output", "mine")),
    wrong(73, "OUTPUT_DIR", "is a file", spoil=text("file", ""), OUTPUT_DIR="{root}/file/deep"),
]  # fmt: skip
TABLE = [*SETTINGS, *NAMES, *COMBINATIONS, *CLUSTER, *MOUNTS]


def check(environ: dict[str, str], *flags: str) -> int:
    return entrypoint.main(["check", *flags], clean_environment(**environ))


@pytest.mark.parametrize("mistake", TABLE, ids=lambda mistake: mistake.name)
def test_a_mistake(mistake, tmp_path, capsys):
    workspace = make_workspace(tmp_path)
    if mistake.spoil:
        mistake.spoil(tmp_path)
    given = {name: value.replace("{root}", str(tmp_path)) for name, value in mistake.env.items()}
    code = check({**workspace, **given}, *mistake.flags)
    said = "".join(capsys.readouterr())
    assert code == mistake.code, said
    for words in mistake.words:
        assert words.replace("{root}", str(tmp_path)) in said
    assert "→" in said  # a remedy
    assert "Traceback" not in said


def test_the_table_is_long_and_says_nothing_twice():
    names = [mistake.name for mistake in TABLE]
    assert len(names) >= 60
    assert len(names) == len(set(names))


def test_without_any_mistake_there_is_nothing_to_say(workspace, capsys):
    assert check(workspace) == 0
    assert "→" not in capsys.readouterr().out


PROMPTS = (
    'it\'s a "dog"',
    "a\ndog",
    "$(touch {pwned})",
    "`touch {pwned}`; rm -rf /",
    "猫 ünï 🐈",
    "--lr=1",
    " ",
)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_may_be_anything(workspace, tmp_path, capsys, prompt):
    pwned = tmp_path / "pwned"
    assert check({**workspace, "instance_prompt": prompt.replace("{pwned}", str(pwned))}) == 0, (
        capsys.readouterr()
    )
    assert not pwned.exists()


def test_too_few_devices(workspace, capsys, monkeypatch):
    two = devices.Devices("cuda", 2, 8, "auto", bf16=True)
    monkeypatch.setattr(devices, "find", lambda *_: two)
    assert check({**workspace, "NPROC_PER_NODE": "8"}) == 69
    assert "8 processes, and 2 cuda devices" in capsys.readouterr().out


def test_an_output_that_is_mounted_read_only(workspace, tmp_path, capsys):
    folder = tmp_path / "output"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
    with contextlib.ExitStack() as after:
        after.callback(subprocess.run, ["umount", str(folder)], check=True)
        assert check(workspace) == 73
    assert "is mounted read-only" in capsys.readouterr().out
