"""Tests of settings, sources and options: which source wins, what the sources say, what is refused."""

import json
import re
import time

import pytest

from sdjob.files import shown
from sdjob.settings.fields import settings_of
from sdjob.settings.run_spec import RunSpec
from sdlaunch.settings import names, settings, sources

FLAGS = ()


def read(environ=(), flags=FLAGS):
    return settings.read(flags, dict(environ))


def subjects(found):
    return {problem.subject for problem in found.problems}


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_without_anything_the_job_is_the_tutorials():
    found = read()
    spec = found.spec
    assert found.problems == ()
    assert (spec.recipe, spec.instance_prompt, spec.plugin) == (
        "dreambooth",
        "a photo of sks dog",
        "torch_ddp",
    )
    assert (spec.resolution, spec.train_batch_size, spec.learning_rate) == (512, 1, 5e-6)
    assert (spec.max_train_steps, spec.lr_scheduler, spec.lr_warmup_steps) == (400, "constant", 0)
    assert found.source("lr") == "default"


def test_the_tutorials_five_variables():
    found = read(
        {
            "NPROC_PER_NODE": "2",
            "batch_size": "4",
            "lr": "1e-5",
            "num_train_step": "20",
            "plugin": "torch_ddp",
        }
    )
    assert found.problems == ()
    assert found.options.nproc_per_node == "2"
    assert (found.spec.train_batch_size, found.spec.learning_rate, found.spec.max_train_steps) == (
        4,
        1e-5,
        20,
    )
    assert found.source("lr") == "environment: lr"


def test_each_source_goes_before_the_next(tmp_path):
    yaml = write(tmp_path / "job.yaml", "seed: 1\nresolution: 64\nlr: 1e-4\nepoch: 3\n")
    env = write(tmp_path / "job.env", f"CONFIG_FILE={yaml}\nseed=2\nresolution=128\nlr=1e-3\n")
    found = read({"ENV_FILE": env, "seed": "3", "resolution": "256"}, [("seed", "4")])
    assert found.problems == ()
    spec = found.spec
    assert (spec.seed, spec.resolution, spec.learning_rate, spec.num_train_epochs) == (4, 256, 1e-3, 3)
    assert [found.source(name) for name in ("seed", "resolution", "lr", "epoch", "recipe")] == [
        "command line: --seed",
        "environment: resolution",
        f"env file {env}:4",
        f"config file {yaml}:4",
        "default",
    ]


def test_a_preset_is_weaker_than_every_source_and_says_what_it_is():
    found = read({"lora_rank": "8"})
    assert (found.spec.learning_rate, found.source("lr")) == (1e-4, "preset: lora_rank above 0")
    found = read({"lora_rank": "8", "lr": "5e-6"})
    assert (found.spec.learning_rate, found.source("lr")) == (5e-6, "environment: lr")


@pytest.mark.parametrize("name", ["lr", "LR", "Lr", "learning_rate", "LEARNING_RATE"])
def test_lower_case_names_are_read_in_any_case(name):
    assert read({name: "1e-3"}).spec.learning_rate == 1e-3


def test_upper_case_names_are_read_as_they_are():
    assert read({"MODEL_DIR": "/m"}).options.model_dir == "/m"
    found = read({"model_dir": "/m"})
    assert found.options.model_dir == "/mnt/model"
    assert subjects(found) == {"model_dir"}  # not ignored in silence


def test_on_the_command_line_every_name_is_read_in_any_case():
    assert read(flags=[("output_dir", "/o")]).options.output_dir == "/o"


def test_an_empty_value_counts_as_unset(tmp_path):
    env = write(tmp_path / "a.env", "lr=\n")
    found = read({"lr": "", "batch_size": "", "ENV_FILE": env}, [("seed", "")])
    assert found.problems == ()
    assert found.source("lr") == found.source("batch_size") == found.source("seed") == "default"


@pytest.mark.parametrize(
    ("name", "value", "field", "meant"),
    [
        ("precision", "16", "mixed_precision", "fp16"),
        ("precision", "32", "mixed_precision", "no"),
        ("precision", "bf16", "mixed_precision", "bf16"),
        ("precision", "FP16", "mixed_precision", "fp16"),
        ("mixed_precision", "16", "mixed_precision", "fp16"),
        ("mixed_precision", "float16", "mixed_precision", "fp16"),
        ("mixed_precision", "half", "mixed_precision", "fp16"),
        ("mixed_precision", "16-mixed", "mixed_precision", "fp16"),
        ("mixed_precision", "BF16", "mixed_precision", "bf16"),
        ("precision", "bfloat16", "mixed_precision", "bf16"),
        ("mixed_precision", "32", "mixed_precision", "no"),
        ("device", "gpu", "device", "cuda"),
        ("device", "CPU", "device", "cpu"),
        ("resume", "latest", "resume", "auto"),
        ("resume", "Never", "resume", "never"),
        ("num_train_step", "1e3", "max_train_steps", 1000),
        ("num_train_step", "400.0", "max_train_steps", 400),
        ("seed", "1E2", "seed", 100),
        ("epoch", "2e0", "num_train_epochs", 2),
        ("flash_attention", "1", "attention", "flash"),
        ("flash_attention", "0", "attention", "math"),
        ("flash_attention", "xformers", "attention", "xformers"),
        ("flash_attention", "cudnn, flash,math", "attention", "cudnn,flash,math"),
        ("use_sdp", "true", "attention", "sdpa"),
        ("enable_xformers_memory_efficient_attention", "1", "attention", "xformers"),
        ("use_flash_attention", "1", "attention", "flash"),
        ("use_xformers", "True", "attention", "xformers"),
        ("num_epochs", "3", "num_train_epochs", 3),
        ("num_epoch", "3", "num_train_epochs", 3),
        ("max_train_epochs", "3", "num_train_epochs", 3),
        ("max_steps", "7", "max_train_steps", 7),
        ("save_steps", "9", "checkpointing_steps", 9),
        ("batchsize", "2", "train_batch_size", 2),
        ("placement_policy", "auto", "placement", "auto"),
        ("num_train_steps", "7", "max_train_steps", 7),
        ("resume_from_checkpoint", "latest", "resume", "auto"),
        ("validation_prompt", "a cat, a dog", "validation_prompts", ("a cat, a dog",)),
        ("validation_prompts", '["a", "b"]', "validation_prompts", ("a", "b")),
    ],
)
def test_aliases_of_names_and_values(name, value, field, meant):
    found = read({name: value})
    assert found.problems == ()
    assert getattr(found.spec, field) == meant


def test_pretrained_model_name_is_the_models_name():
    assert read({"pretrained_model_name_or_path": "sd"}).options.model_name == "sd"
    assert read({"MODEL_NAME": "sd"}).options.model_name == "sd"


def test_two_aliases_with_different_values_are_a_problem_that_names_both():
    (problem,) = read({"lr": "1e-5", "learning_rate": "1e-4"}).problems
    assert problem.code == 64
    assert "environment: lr" in problem.found
    assert "environment: learning_rate" in problem.found


def test_two_aliases_with_the_same_value_are_none():
    found = read({"lr": "1e-5", "learning_rate": "0.00001", "precision": "16", "mixed_precision": "fp16"})
    assert found.problems == ()


def test_aliases_in_different_sources_are_no_conflict():
    assert read({"lr": "1e-5"}, [("learning_rate", "1e-4")]).spec.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("bacth_size", "batch_size"),
        ("NPROC_PERNODE", "NPROC_PER_NODE"),
        ("nproc_per_node", "NPROC_PER_NODE"),
        ("LEARNING_RTE", "learning_rate"),
        ("num_trian_step", "num_train_step"),
        ("OUPUT_DIR", "OUTPUT_DIR"),
        ("resolutoin", "resolution"),
        ("instance_promt", "instance_prompt"),
        ("epochs", "epoch"),
        ("network_dim", "lora_rank"),
        ("NETWORK_ALPHA", "lora_alpha"),
        ("unet_lr", "lr"),
        ("save_every_n_steps", "checkpointing_steps"),
        ("steps", "num_train_step"),
        ("batch", "batch_size"),
        ("snr", "snr_gamma"),
    ],
)
def test_a_near_miss_in_the_environment_stops_the_job(typed, meant):
    (problem,) = read({typed: "1"}).problems
    assert (problem.code, problem.subject) == (64, typed)
    assert meant in problem.found
    assert f"Write {meant}" in problem.remedy


def test_the_rank_of_a_process_is_not_that_of_a_lora():
    assert read({"RANK": "3", "rank": "3"}).problems == ()
    found = read({"RANK": "3"}, [("rank", "4")])
    assert (found.problems, found.spec.lora_rank, found.source("lora_rank")) == (
        (),
        4,
        "command line: --rank",
    )
    assert subjects(read({}, [("rank", "4"), ("lora_rank", "8")])) == {"lora_rank"}


# --- flags of the diffusers examples -----------------------------------------------------------------


def test_flags_without_a_counterpart_are_answered_wherever_they_are_written(tmp_path):
    def remedies(found):
        assert "hf_secret" not in str(found.problems) + str(found.warnings)
        return {problem.subject: problem.remedy.split()[0] for problem in found.problems}

    expected = {"hub_token": "Remove", "scale_lr": "Multiply"}
    given = {"scale_lr": "true", "hub_token": "hf_secret", "report_to": "all", "set_grads_to_none": "1"}
    assert remedies(read({}, list(given.items()))) == expected
    assert remedies(read(given)) == expected
    lines = "".join(f"{name}={value}\n" for name, value in given.items())
    found = read({"ENV_FILE": write(tmp_path / "a.env", lines)})
    assert (remedies(found), found.passed_on) == (expected, {})
    lines = "".join(f"{name}: {value}\n" for name, value in given.items())
    assert remedies(read({"CONFIG_FILE": write(tmp_path / "a.yaml", lines)})) == expected
    relaxed = read(given | {"strict_env": "0"})
    assert not relaxed.problems and len(relaxed.warnings) == 2


def test_variables_of_platforms_are_not_such_flags():
    environ = {"REVISION": "abc", "variant": "x", "LOCAL_RANK": "0", "local_rank": "0", "REPEATS": "3"}
    found = read(environ | {"SCALE_LR": "1"})  # in capitals it may be another program's
    assert (found.problems, found.warnings) == ((), ())


def test_strict_env_0_makes_it_a_warning():
    found = read({"bacth_size": "2", "strict_env": "0"})
    assert found.problems == ()
    assert "batch_size" in found.warnings[0]


OF_OTHERS = """
PATH HOME HOSTNAME LANG LC_ALL PWD SHLVL USER LOGNAME TERM _ NODE_NAME PET_NNODES PET_NODE_RANK
PET_MASTER_ADDR SM_MODEL_DIR SLURM_NNODES SLURM_NODEID NVIDIA_VISIBLE_DEVICES CUDA_VISIBLE_DEVICES
NCCL_DEBUG OMP_NUM_THREADS PYTHONPATH HF_HOME KUBERNETES_PORT MASTER_HOST PROJECT_ID WORLD_SIZE RANK
LOCAL_RANK VC_TASK_INDEX MLP_WORKER_NUM SKYPILOT_NUM_NODES DSTACK_NODES_NUM WANDB_DIR TZ POD_IP
"""


@pytest.mark.parametrize("name", OF_OTHERS.split())
def test_the_variables_of_others_are_left_alone(name):
    found = read({name: "1"})
    assert (found.problems, found.warnings) == ((), ())


def test_flags_of_the_worker_are_never_read_from_the_environment():
    found = read({"output_dir": "/x", "train_data_dir": "/y"})
    assert found.problems == ()
    assert (found.spec.output_dir, found.spec.train_data_dir) == ("?", None)
    assert found.warnings == (
        "output_dir (environment: output_dir) is never read from there: set OUTPUT_DIR",
        "train_data_dir (environment: train_data_dir) is never read from there: set DATASET_DIR",
    )


def test_flags_of_the_worker_in_a_file_are_a_mistake_with_the_name_to_use(tmp_path):
    path = write(tmp_path / "a.env", "output_dir=/x\ninstance_data_dir=/y\nrank=4\nRANK=4\n")
    found = read({"ENV_FILE": path})
    assert {problem.subject: problem.remedy.split(":")[0] for problem in found.problems} == {
        "output_dir": "Write OUTPUT_DIR",
        "instance_data_dir": "Write DATASET_DIR",
        "rank": "Write lora_rank; or set strict_env=0 if rank is meant for something else.",
    }
    assert found.passed_on == {"RANK": "4"}
    found = read({"CONFIG_FILE": write(tmp_path / "a.yaml", "train_data_dir: /y\noutput_dir: /x\n")})
    assert [(problem.subject, problem.remedy) for problem in found.problems] == [
        ("train_data_dir", "Write DATASET_DIR.")
    ]
    assert found.options.output_dir == "/x"  # there and on the command line names have any case


def test_every_flag_that_is_not_read_leads_to_a_mount():
    flags = {name for name, about in settings_of(RunSpec).items() if about.flag_only}
    assert {name for name in flags if not names.mount_of(name)} == {
        "pretrained_model_name_or_path"
    }  # is read


def test_every_wrong_value_is_reported_with_its_source():
    found = read(
        {"batch_size": "many", "lr": "-1", "resolution": "100", "plugin": "ddp", "stop_grace": "soon"}
    )
    assert subjects(found) == {"batch_size", "lr", "resolution", "plugin", "stop_grace"}
    assert {problem.code for problem in found.problems} == {64}
    assert all(f"(environment: {problem.subject})" in problem.found for problem in found.problems)
    assert found.spec.train_batch_size == 1  # the rest can still be checked


@pytest.mark.parametrize("value", ["nan", "inf", "0", "1e400", "5e-6x", "--lr"])
def test_no_such_learning_rate(value):
    assert subjects(read({"lr": value})) == {"lr"}


# --- env files ---------------------------------------------------------------------------------------


def test_an_env_file_is_read_as_docker_reads_it(tmp_path):
    lines = "# comment\n\nlr=1e-3\ninstance_prompt=a photo of sks dog, it's $5 = cheap\n  seed=7\n"
    found = read({"ENV_FILE": write(tmp_path / "a.env", lines)})
    assert found.problems == ()
    assert found.spec.instance_prompt == "a photo of sks dog, it's $5 = cheap"
    assert (found.spec.learning_rate, found.spec.seed) == (1e-3, 7)


@pytest.mark.parametrize(
    "line", ["lr=1e-3 # high", "instance_prompt=${HOME} dog", "instance_prompt='a' # dog", "lr='1e-3"]
)
def test_a_line_that_docker_and_dotenv_read_differently_is_refused(tmp_path, line):
    found = read({"ENV_FILE": write(tmp_path / "a.env", line + "\n"), "HOME": "/root"})
    assert line.partition("=")[0] in subjects(found)
    assert any("docker" in problem.found for problem in found.problems)


@pytest.mark.parametrize(
    ("lines", "found"),
    [("A=1\n" * 5000, "has 5,001 lines"), ("lr=1\nA=" + "x" * 131_070, "line 2 of .* has 131,072 bytes")],
)
def test_a_file_that_no_process_could_be_given_is_refused(tmp_path, lines, found):
    (problem,) = read({"ENV_FILE": write(tmp_path / "a.env", lines)}).problems
    assert problem.subject == "ENV_FILE" and re.search(found, problem.found)


@pytest.mark.parametrize(
    "text",
    [
        "A=" + "x" * 1000 + "\n" + "".join(f"A{n + 1}=${{A{n or ''}}}${{A{n or ''}}}\n" for n in range(40)),
        "".join(f"X{n}=a" + " " * 100_000 + "b\n" for n in range(5)),
        'instance_prompt="' + "a\n" * 4000,
        "X=" + "${" * 60_000 + "\n",
    ],
)
def test_an_env_file_takes_bounded_time_and_memory(tmp_path, text):
    """Its cost to python-dotenv, or to an expression, grows with a square or doubles with each line."""
    begin = time.process_time()
    found = read({"ENV_FILE": write(tmp_path / "a.env", text), "B": "a" + "\u200b" * 100_000 + "b"})
    assert time.process_time() - begin < 5
    assert all(len(problem.found) < 300_000 for problem in found.problems)


def test_a_file_of_more_than_an_environment_holds_is_refused(tmp_path):
    (problem,) = read({"ENV_FILE": write(tmp_path / "a.env", ("A=" + "x" * 99_000 + "\n") * 11)}).problems
    assert problem.subject == "ENV_FILE" and "larger than 1 MiB" in problem.found


def test_what_is_not_seen_at_the_ends_is_every_blank_of_unicode():
    blanks = {character for character in map(chr, range(0x110000)) if character.isspace()}
    assert blanks < {*sources._INVISIBLE}


def test_such_a_line_is_taken_as_docker_reads_it_with_strict_env_0(tmp_path):
    env = write(tmp_path / "a.env", "instance_prompt=a dog # mine\n")
    found = read({"ENV_FILE": env, "strict_env": "0"})
    assert found.problems == ()
    assert found.spec.instance_prompt == "a dog # mine"


def test_a_file_of_windows_is_read_as_any_other(tmp_path):
    (tmp_path / "a.env").write_bytes("\ufefflr=1e-3\r\ninstance_prompt=a dog\r\n\r\n# remark\r\n".encode())
    found = read({"ENV_FILE": str(tmp_path / "a.env")})
    assert (found.problems, found.warnings) == ((), ())
    assert (found.spec.learning_rate, found.spec.instance_prompt) == (1e-3, "a dog")


# --- what docker and web forms leave in a value ------------------------------------------------------

ZERO_WIDTH, FULL_WIDTH_BLANK, BYTE_ORDER_MARK = "\u200b", "\u3000", "\ufeff"


def from_everywhere(tmp_path, text: str) -> dict[str, str]:
    """What an instance_prompt of this text is read as, from each source that can hold it."""
    yaml = write(tmp_path / "a.yaml", f"instance_prompt: {json.dumps(text)}\n")
    found = {
        "command line": read(flags=[("instance_prompt", text)]),
        "environment": read({"instance_prompt": text}),
        "YAML": read({"CONFIG_FILE": yaml}),
    }
    if "\n" not in text:
        found["env file"] = read({"ENV_FILE": write(tmp_path / "a.env", f"instance_prompt={text}\n")})
    assert all(each.problems == () for each in found.values())
    return {source: each.spec.instance_prompt for source, each in found.items()}


@pytest.mark.parametrize(
    "blank", [" ", "\t", "\n", "\r\n", "\xa0", FULL_WIDTH_BLANK, ZERO_WIDTH, BYTE_ORDER_MARK], ids=ascii
)
def test_what_cannot_be_seen_at_the_ends_of_a_value_is_removed_everywhere(tmp_path, blank):
    read_as = from_everywhere(tmp_path, f"{blank}a sks dog{blank}{blank}")
    assert set(read_as.values()) == {"a sks dog"}
    assert read({"plugin": f"torch_ddp{blank}", "MODEL_DIR": f"/m{blank}"}).problems == ()
    assert read({"MODEL_DIR": f"/m{blank}"}).options.model_dir == "/m"
    assert read({"lr": blank}).source("lr") == "default"


@pytest.mark.parametrize("quotes", ["''", '""', "‘’", "“”"])
def test_quotes_around_a_value_are_removed_where_docker_leaves_them(tmp_path, quotes):
    before, after = quotes
    quoted = f"{before}a sks dog{after}"
    read_as = from_everywhere(tmp_path, quoted)
    assert read_as == {
        "command line": quoted,  # a shell has removed its own
        "YAML": quoted,
        "environment": "a sks dog",
        "env file": "a sks dog",
    }
    found = read({"MODEL_DIR": f" {before}/m {after} ", "lr": f"{before}1e-3{after}", "seed": quotes})
    assert found.options.model_dir == "/m"
    assert found.spec.learning_rate == 1e-3
    assert found.source("seed") == "default"
    assert sorted(found.warnings) == [
        "MODEL_DIR: read without the quotes around it, as '/m' (environment: MODEL_DIR)",
        "lr: read without the quotes around it, as '1e-3' (environment: lr)",
    ]


@pytest.mark.parametrize("text", ['"a" and "b"', '"a" dog', "dog's", '["a", "b"]', '"', "'\""])
def test_quotes_inside_a_value_stay(text):
    found = read({"instance_prompt": text})
    assert (found.spec.instance_prompt, found.warnings) == (text, ())


def test_one_pair_of_quotes_is_removed_so_that_the_other_can_be_meant():
    assert read({"instance_prompt": "'\"dog\"'"}).spec.instance_prompt == '"dog"'


def test_the_variables_of_others_may_have_quotes():
    assert read({"PS1": '"$ "', "MY_OWN": "'x'"}).warnings == ()


def test_an_invisible_character_inside_a_path_is_shown():
    assert shown("/mnt/mo\u200bdel") == "'/mnt/mo\\u200bdel'"
    assert shown("/mnt/数据 é") == "/mnt/数据 é"


def test_every_bad_line_of_an_env_file_is_named(tmp_path):
    env = write(tmp_path / "a.env", "lr=1e-3\nno equals sign\nbacth_size=2\n= 5\n")
    found = read({"ENV_FILE": env})
    assert subjects(found) == {"ENV_FILE", "bacth_size"}
    assert sum("line 2" in p.found or "line 4" in p.found for p in found.problems) == 2
    assert found.spec.learning_rate == 1e-3


def test_variables_for_libraries_are_passed_on(tmp_path):
    found = read({"ENV_FILE": write(tmp_path / "a.env", "NCCL_DEBUG=INFO\nMY_OWN_THING=1\n")})
    assert found.problems == ()
    assert found.passed_on == {"NCCL_DEBUG": "INFO", "MY_OWN_THING": "1"}
    assert [("MY_OWN_THING" in warning) for warning in found.warnings] == [True]


@pytest.mark.parametrize("variable", ["ENV_FILE", "CONFIG_FILE"])
def test_a_missing_file_and_one_that_is_no_text(tmp_path, variable):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    assert "No such file" in read({variable: str(tmp_path / "none")}).problems[0].found
    assert "directory" in read({variable: str(tmp_path)}).problems[0].found
    assert "UTF-8" in read({variable: str(tmp_path / "binary")}).problems[0].found


# --- YAML --------------------------------------------------------------------------------------------


def test_yaml_values_mean_what_they_are_spelled_as(tmp_path):
    text = "mixed_precision: no\nlr: 1e-5\nuse_ema: yes\nepoch: null\nvalidation_prompts: [a, 'b, c']\nOUTPUT_DIR: /o\n"
    found = read({"CONFIG_FILE": write(tmp_path / "a.yaml", text)})
    assert found.problems == ()
    spec = found.spec
    assert (spec.mixed_precision, spec.learning_rate, spec.use_ema) == ("no", 1e-5, True)
    assert (spec.num_train_epochs, spec.validation_prompts) == (None, ("a", "b, c"))
    assert found.options.output_dir == "/o"


@pytest.mark.parametrize(
    ("text", "subject", "part"),
    [
        ("bacth_size: 2\n", "bacth_size", ":1"),
        ("seed: 1\nnothing_like_it: 2\n", "nothing_like_it", ":2"),
        ("seed: 1\nlr: {a: 1}\n", "lr", ":2"),
        ("seed: 1\n  lr: [\n", "CONFIG_FILE", "line"),
        ("- a\n- b\n", "CONFIG_FILE", "not a mapping"),
        ("seed: 1\nseed: 2\n", "seed", ":2"),
        ("lr: 1\nlearning_rate: 0.5\n", "lr", ":2"),
        ("train_data_dir: /x\n", "train_data_dir", ":1"),
    ],
)
def test_mistakes_in_yaml_are_named_with_their_line(tmp_path, text, subject, part):
    (problem,) = read({"CONFIG_FILE": write(tmp_path / "a.yaml", text)}).problems
    assert (problem.code, problem.subject) == (64, subject)
    assert part in problem.found


def test_yaml_cannot_make_objects(tmp_path):
    text = "instance_prompt: !!python/object/apply:os.system ['touch pwned']\n"
    found = read({"CONFIG_FILE": write(tmp_path / "a.yaml", text)})
    assert not (tmp_path / "pwned").exists()
    assert subjects(found) == {"instance_prompt"}


# --- command line ------------------------------------------------------------------------------------


def test_an_unknown_flag_is_a_problem_also_without_a_near_miss():
    assert subjects(read(flags=[("nothing_like_it", "1")])) == {"nothing_like_it"}


def test_one_flag_given_twice():
    assert subjects(read(flags=[("lr", "1e-5"), ("lr", "1e-4")])) == {"lr"}
    found = read(flags=[("validation_prompts", "a"), ("validation_prompts", "b")])
    assert found.problems == ()
    assert found.spec.validation_prompts == ("a", "b")


@pytest.mark.parametrize(("seconds", "warned"), [("0", 0), ("59.5", 1), ("60", 0), ("3600", 0)])
def test_a_limit_that_ends_slow_jobs_is_warned_about(seconds, warned):
    found = read({"hang_timeout": seconds})
    assert (found.problems, len(found.warnings)) == ((), warned)
    assert all(text.startswith("hang_timeout: 59.5 s is less than") for text in found.warnings)


@pytest.mark.parametrize(
    ("name", "typed", "meant"),
    [
        ("lr", "1e4", "1e-4"),
        ("num_train_step", "４００", "400"),
        ("batch_size", "−2", None),
        ("lr", "20", None),
        ("validation_prompts", '["一只狗，在海边"', None),  # a list that is not closed
    ],
)
def test_a_value_that_an_input_method_or_a_slip_changed_is_answered_with_the_one_meant(name, typed, meant):
    (problem,) = read({name: typed}).problems
    assert problem.remedy.startswith(f"Did you mean {meant}? Write " if meant else "Write ")


def test_a_full_width_sign_in_an_env_file_is_named(tmp_path):
    (problem,) = read({"ENV_FILE": write(tmp_path / "a.env", "lr＝1e-5\n")}).problems
    assert problem.found.endswith("has no `=` after a name, but a full-width `＝`")
