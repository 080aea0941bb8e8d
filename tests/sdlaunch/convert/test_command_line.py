"""Tests of convert/command_line.py: shell text and words, without a shell."""

import pytest

from sdjob.problems import JobError
from sdlaunch.convert import command_line

KNOWN = ("train_dreambooth", "train_network")


def read(text):
    return command_line.from_text(text, KNOWN)


def flags(command):
    return {flag.name: flag.values for flag in command.flags}


def test_a_script_as_tutorials_write_it():
    command = read(
        "#!/bin/bash\n# it's an example\n"
        'export MODEL_NAME="CompVis/a b"\nexport PYTHONPATH=$PYTHONPATH:src\nHF_HUB_OFFLINE=1\n'
        "accelerate launch --mixed_precision='fp16' --multi_gpu ./examples/train_dreambooth.py \\\n"
        "  --pretrained_model_name_or_path=$MODEL_NAME --use_ema \\\n"
        '  --instance_prompt "a photo, \'sks\' $5" --validation_prompts a "b c" \\\n'
        "  --adam_epsilon -1 > ${LOG_FILE} 2>&1 | tee log &\n"
    )
    assert (command.launcher, command.script) == ("accelerate", "train_dreambooth")
    assert [(flag.name, flag.values) for flag in command.launcher_flags] == [
        ("mixed_precision", ("fp16",)),
        ("multi_gpu", ()),
    ]
    assert flags(command) == {
        "pretrained_model_name_or_path": ("CompVis/a b",),
        "use_ema": (),
        "instance_prompt": ("a photo, 'sks' $5",),
        "validation_prompts": ("a", "b c"),
        "adam_epsilon": ("-1",),
    }
    assert command.variables == (("PYTHONPATH", "$PYTHONPATH:src"), ("HF_HUB_OFFLINE", "1"))
    assert [line.origin for line in command.remarks if line.lost] == ["$5"]


def test_variables_of_the_text_are_filled_in_also_in_each_other():
    command = read(
        "ROOT=/data\nexport MODEL=${ROOT}/sd\nX=1 python train_network.py --a=$MODEL --b '${ROOT} x'"
    )
    assert flags(command) == {"a": ("/data/sd",), "b": ("/data x",)}
    assert command.variables == (("X", "1"),)


@pytest.mark.parametrize(
    ("words", "launcher"),
    [
        ("accelerate launch", "accelerate"),
        ("/opt/bin/accelerate-launch", "accelerate"),
        ("python3 -m accelerate.commands.launch", "accelerate"),
        ("python -m torch.distributed.run", "torchrun"),
        ("torchrun", "torchrun"),
        ("colossalai run", "colossalai"),
        ("python", "python"),
        ("", "python"),
        ("nohup CUDA_VISIBLE_DEVICES=0 python", "python"),
    ],
)
def test_launchers(words, launcher):
    command = read(f"{words} train_dreambooth.py --seed 1")
    assert (command.launcher, flags(command)) == (launcher, {"seed": ("1",)})


def test_continued_lines_of_other_shells_and_broken_ones():
    assert flags(read("python train_network.py ^\r\n --a=1 `\n --b=2 \\\n --c")) == {
        "a": ("1",),
        "b": ("2",),
        "c": (),
    }
    missing = read("python train_network.py --logging_dir=x\n  --seed=1 \\\n  --lr 2\n")
    assert flags(missing) == {"logging_dir": ("x",), "seed": ("1",), "lr": ("2",)}
    blank = read("python train_network.py --a=1 \\ \n --b=2")
    assert flags(blank) == {"a": ("1",), "b": ("2",)}
    assert [line.origin for line in (*missing.remarks, *blank.remarks)] == [
        "no backslash in the line above --seed",
        "a backslash with blanks after it",
    ]


def test_nothing_is_executed_or_taken_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "hidden")
    target = tmp_path / "made"
    command = read(
        f"python train_network.py --a=$SECRET --b=$(touch {target}) --c='`touch {target}`'; touch {target}"
    )
    assert flags(command)["a"] == ("$SECRET",)
    assert "$SECRET" in [line.origin for line in command.remarks if line.lost]
    assert not target.exists()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "no training script"),
        ("python other.py --a", "other.py is not a script that is known"),
        ("deepspeed train_network.py", "a command of deepspeed"),
        ('python train_network.py --a="x', "No closing quotation"),
        (
            "A=" + "x" * 9 + "\n" + "A=$A$A$A$A$A$A$A$A$A\n" * 9 + "python train_network.py --a=$A",
            "$A$A$A$A$A$A$A$A$A… has 531,441 characters with its variables",
        ),
        ("python train_network.py\npython train_dreambooth.py", "2 training commands"),
    ],
)
def test_what_is_no_training_command_is_refused(text, found):
    with pytest.raises(JobError) as caught:
        read(text)
    (problem,) = caught.value.problems
    assert problem.code == 64 and found in problem.found and problem.remedy


def test_words_that_belong_to_no_flag_are_said():
    command = command_line.from_words(["python", "train_network.py", "stray", "--a"], KNOWN)
    assert [(line.origin, line.lost) for line in command.remarks] == [("stray", True)]
