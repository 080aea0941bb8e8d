"""Inputs that are made to take all memory or time end a plan with their code, within 1 GiB and a minute."""

import contextlib
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest

import entrypoint
from sdjob import reading
from sdjob.model import torch_zip
from tests.sdlaunch.workspace import clean_environment, make_workspace
from tests.support import hostile

SECONDS = 60.0  # of a processor, since the machine may do other things too
SETTINGS, INPUT, HARMLESS = {64}, {66}, {0}

KINDS = {
    hostile.endless_settings: SETTINGS,
    hostile.huge_settings: SETTINGS,
    hostile.silent_pipes: SETTINGS,
    hostile.aliases_as_settings: SETTINGS,
    hostile.wide_settings: SETTINGS,
    hostile.huge_script: INPUT,
    hostile.aliases: INPUT,
    hostile.long_yaml: INPUT,
    hostile.huge_concepts: INPUT,
    hostile.concepts_in_themselves: INPUT,
    hostile.huge_safetensors_header: INPUT,
    hostile.huge_weights: {73},
    hostile.many_tensors: HARMLESS,
    hostile.huge_shape: INPUT,
    hostile.nested_json: INPUT,
    hostile.nested_tokenizer: INPUT,
    hostile.wide_json: INPUT,
    hostile.widest_json: INPUT,
    hostile.huge_vocabulary: INPUT,
    hostile.huge_configs: INPUT,
    hostile.hostile_keys: INPUT,
    hostile.many_layers: INPUT,
    hostile.huge_shard_index: INPUT,
    hostile.pickle_bomb: INPUT,
    hostile.huge_pickle: INPUT,
    hostile.huge_archive_list: INPUT,
    hostile.pickled_code: INPUT,
    hostile.pickle_of_a_far_note: INPUT,
    hostile.pickle_of_a_key_without_end: INPUT,
    hostile.pickle_in_itself: INPUT,
    hostile.pickle_of_many_axes: INPUT,
    hostile.deep_level: HARMLESS,
    hostile.long_layers: SETTINGS,
    hostile.many_dots: INPUT,
    hostile.many_shards: INPUT,
    hostile.long_shard_name: INPUT,
    hostile.huge_hub_cache: INPUT,
    hostile.unfolding_parquet: INPUT,
    hostile.unfolding_images: INPUT,
    hostile.parquet_with_a_huge_footer: INPUT,
    hostile.saved_dataset_of_holes: INPUT,
    hostile.arrow_file_of_holes: INPUT,
    hostile.huge_metadata: INPUT,
    hostile.huge_metadata_csv: INPUT,
    hostile.metadata_of_tiny_rows: INPUT,
    hostile.metadata_of_empty_lines: INPUT,
    hostile.metadata_in_one_line: INPUT,
    hostile.metadata_of_many_columns: INPUT,
    hostile.long_captions: HARMLESS,
    hostile.huge_captions: INPUT,
    hostile.links_to_themselves: INPUT,
    hostile.many_folders: INPUT,
    hostile.many_files: INPUT,
    hostile.image_bomb: INPUT,
    hostile.image_of_many_pixels: HARMLESS,
    hostile.huge_image_files: INPUT,
    hostile.images_that_are_not_files: INPUT,
    hostile.huge_records: {0, 73},
    hostile.huge_checkpoint: HARMLESS,
    hostile.metrics_of_empty_lines: HARMLESS,
}
LONG = {hostile.many_files, hostile.metadata_of_empty_lines}  # that take some ten seconds


def memory_of(pid: int) -> int:
    """Resident bytes of a process and of all below it."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def launcher(environ: dict[str, str]):
    """The launcher as a fork of this process, which has imported what it imports."""

    def become() -> None:
        code = 1
        try:
            os.environ.clear()
            os.environ.update(environ)
            sys.argv = ["entrypoint.py", "plan"]
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            code = entrypoint.start()
            sys.stdout.flush()
        finally:
            os._exit(code)

    return become


@pytest.mark.parametrize(
    "make", [pytest.param(make, marks=pytest.mark.long) if make in LONG else make for make in KINDS]
)
def test_a_plan_takes_bounded_memory_and_time(tmp_path, monkeypatch, make):
    monkeypatch.setattr(reading, "PATIENCE", 0.2)
    monkeypatch.setattr(torch_zip, "_PATIENCE", 2.0)
    workspace = make_workspace(tmp_path)
    environ = clean_environment(**workspace, **make(tmp_path))
    idle, begin, before, peak = psutil.Process().memory_info().rss, time.monotonic(), os.times(), 0
    with (
        (tmp_path / "text").open("w+") as text,
        subprocess.Popen(["plan"], preexec_fn=launcher(environ), stdout=text, stderr=text) as process,
    ):
        while process.poll() is None and time.monotonic() - begin < 4 * SECONDS:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.02)
        process.kill()
    after, said = os.times(), (tmp_path / "text").read_text()
    shutil.rmtree(tmp_path)
    assert len(said) < 1 << 16
    assert process.returncode in KINDS[make], said
    assert "bug" not in said and "Traceback" not in said
    assert peak - idle < hostile.GIB, said
    assert (
        after.children_user + after.children_system - before.children_user - before.children_system < SECONDS
    )
