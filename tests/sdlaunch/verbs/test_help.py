"""The help text comes from the schema and the table of verbs."""

from sdlaunch import cli
from tests.sdlaunch.workspace import launch


def test_help_names_every_setting():
    done = launch("--help", MODEL_DIR="/nonexistent")
    assert done.returncode == 0
    assert all(
        f"  {name} " in done.stdout for name in ("lr", "batch_size", "MODEL_DIR", "use_ema", "stop_grace")
    )
    assert "output_dir" not in done.stdout
    codes = done.stdout.partition("exit codes\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in codes] == ["0", "64", "66", "69", "70", "71", "73", "75", "130"]


def test_help_names_every_verb():
    printed = launch("--help").stdout
    listed = printed.partition("verbs\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == list(cli.VERBS)
    assert "  doctor [--json]  what this machine" in printed
