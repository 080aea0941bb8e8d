"""The cache: what is in it, whose work it was, and what is noticed."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdjob.problems import JobError
from sdtrain.data.cache import Cache, DiskCache, MemoryCache, fill
from sdtrain.runtime.stop import Stopped
from tests.support.worker import alone, context_of

KEYS = [f"{number:02d}" * 4 for number in (3, 1, 2, 1)]


def value(key: str) -> torch.Tensor:
    return torch.full((2, 3), float(key[:2]))


class Maker:
    """Makes entries, and remembers which."""

    def __init__(self):
        self.made = []

    def __call__(self, keys):
        for key in keys:
            self.made.append(key)
            yield key, {"number": value(key), "sign": torch.ones(1, dtype=torch.int32)}


def filled(cache: Cache, keys=KEYS, stop=False) -> list[str]:
    """Fills the cache; returns the keys whose entries had to be made."""
    maker = Maker()
    fill(context_of(stop=stop, first_step=7), cache, "numbers", keys, maker)
    return maker.made


def caches(folder: Path) -> list[Cache]:
    return [MemoryCache(), DiskCache(folder)]


def test_a_link_in_the_place_of_its_folder_is_not_written_through(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "latents").symlink_to(tmp_path / "mine")
    with pytest.raises(JobError) as caught:
        filled(DiskCache(tmp_path / "latents"))
    assert caught.value.code == 73 and "is a link" in str(caught.value)
    assert not list((tmp_path / "mine").iterdir())


def test_each_entry_is_made_once(tmp_path, capsys):
    for cache in caches(tmp_path):
        assert sorted(filled(cache)) == sorted(set(KEYS))
        assert all(torch.equal(cache[key]["number"], value(key)) for key in KEYS)
        assert filled(cache) == []
    said = capsys.readouterr().out
    assert "numbers: 0 of 3 cached, 3 to encode" in said
    assert "numbers: 3 of 3 cached, 0 to encode" in said


def test_entries_are_in_few_files(tmp_path):
    keys = [f"{number:04d}" for number in range(300)]
    filled(DiskCache(tmp_path), keys)
    files = list(tmp_path.iterdir())
    assert len(files) == 4 and all(
        file.suffix == ".safetensors" for file in files
    )  # 32, 64, 128 and the rest
    again = DiskCache(tmp_path)
    assert filled(again, keys) == [] and torch.equal(again["0299"]["number"], value("0299"))


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-4], lambda content: b"", lambda content: content[:9]]
)
def test_a_broken_file_is_made_again(tmp_path, damage):
    filled(DiskCache(tmp_path), KEYS[:2])
    (broken,) = tmp_path.iterdir()
    filled(DiskCache(tmp_path), KEYS[:3])
    broken.write_bytes(damage(broken.read_bytes()))
    cache = DiskCache(tmp_path)
    assert sorted(filled(cache, KEYS[:3])) == sorted(KEYS[:2])
    assert torch.equal(cache[KEYS[1]]["number"], value(KEYS[1]))


def test_what_is_not_a_file_of_a_cache_is_passed_over(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    with (tmp_path / "huge.safetensors").open("wb") as file:
        file.write(((99 << 20).to_bytes(8, "little")) + b"{")
        file.truncate(1 << 40)
    assert sorted(filled(DiskCache(tmp_path))) == sorted(set(KEYS))
    assert filled(DiskCache(tmp_path)) == []


WANTED = {"number": (2, 3)}


@pytest.mark.parametrize(
    "entry",
    [
        {"number": torch.zeros(3, 2)},
        {"number": torch.zeros(2, 3, dtype=torch.int64)},
        {"number": torch.zeros(2, 3, dtype=torch.float8_e5m2)},
        {"other": torch.zeros(2, 3)},
        {"number": torch.zeros(2, 3), "other": torch.zeros(2, 3)},
    ],
)
def test_an_entry_of_other_tensors_is_made_again(tmp_path, entry):
    """Even under the name of the file that takes its place."""
    made = {"a": {"number": torch.ones(2, 3)}, "b": {"number": torch.ones(2, 3)}}
    name = DiskCache(tmp_path).store({"a": made["a"]})["a"]
    save_file({f"a/{part}": tensor for part, tensor in entry.items()}, tmp_path / name)
    DiskCache(tmp_path).store({"b": made["b"]})
    asked, cache = [], DiskCache(tmp_path)

    def make(keys):
        asked.extend(keys)
        return ((key, made[key]) for key in keys)

    fill(context_of(), cache, "numbers", ["a", "b"], make, lambda key: WANTED)
    assert asked == ["a"] and torch.equal(cache["a"]["number"], torch.ones(2, 3))


def test_files_of_others_and_of_earlier_versions_are_left_alone(tmp_path):
    old = tmp_path / KEYS[0][:2] / f"{KEYS[0]}.safetensors"  # one file an entry
    old.parent.mkdir()
    save_file({"number": torch.zeros(2, 3)}, old)
    (tmp_path / "notes.txt").write_text("mine")
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    cache = DiskCache(tmp_path)
    assert sorted(filled(cache)) == sorted(set(KEYS))
    assert torch.equal(cache[KEYS[0]]["number"], value(KEYS[0]))
    assert old.exists() and len(list(tmp_path.iterdir())) == 4


def test_two_jobs_fill_a_folder_at_once(tmp_path):
    """Each makes what it does not find, and reads what it has made."""
    first, second = DiskCache(tmp_path), DiskCache(tmp_path)

    def both(keys):
        assert sorted(filled(second, KEYS[:2])) == sorted(KEYS[:2])  # meanwhile
        return Maker()(keys)

    fill(context_of(), first, "numbers", KEYS, both)
    assert all(torch.equal(cache[KEYS[0]]["number"], value(KEYS[0])) for cache in (first, second))
    assert filled(DiskCache(tmp_path)) == []


def test_no_half_file_is_ever_in_place(tmp_path, monkeypatch):
    def die(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", die)
        filled(DiskCache(tmp_path))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert sorted(filled(DiskCache(tmp_path))) == sorted(set(KEYS))


def test_a_stop_keeps_what_is_made(tmp_path):
    keys = [f"{number:04d}" for number in range(80)]
    with pytest.raises(Stopped) as stopped:
        filled(DiskCache(tmp_path), keys, stop=True)
    assert stopped.value.step == 7
    kept = DiskCache(tmp_path).found(keys)
    assert 0 < len(kept) < 80
    assert filled(DiskCache(tmp_path), keys) == [key for key in keys if key not in kept]


def test_a_full_disk_is_a_problem_and_not_a_fault(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiskCache, "store", full)
    with pytest.raises(JobError) as caught:
        filled(DiskCache(tmp_path))
    assert caught.value.code == 73


class Ranks:
    """Two threads as two ranks that meet in `gather`."""

    def __init__(self):
        self.meeting, self.values = threading.Barrier(2, timeout=30), [None, None]

    def world(self, rank: int):
        ranks = self

        class World(type(alone())):
            def gather(self, value):
                ranks.values[self.rank] = value
                ranks.meeting.wait()
                found = list(ranks.values)
                ranks.meeting.wait()
                return found

            def any(self, flag):
                return any(self.gather(flag))

        one = alone()
        return World(rank, rank, 2, one.device_type, one.device)

    def fill(self, both: list[Cache]) -> list[list[str]]:
        makers = [Maker(), Maker()]
        errors = []

        def run(rank):
            try:
                fill(replace(context_of(), world=self.world(rank)), both[rank], "numbers", KEYS, makers[rank])
            except JobError as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [maker.made for maker in makers]


def test_ranks_share_the_work_and_all_have_everything(tmp_path):
    for both in ([MemoryCache(), MemoryCache()], [DiskCache(tmp_path), DiskCache(tmp_path)]):
        first, second = Ranks().fill(both)
        assert sorted(first + second) == sorted(set(KEYS)) and first and second
        assert all(torch.equal(cache[key]["number"], value(key)) for cache in both for key in KEYS)


def test_a_folder_that_the_nodes_do_not_share_is_noticed(tmp_path):
    with pytest.raises(JobError) as caught:
        Ranks().fill([DiskCache(tmp_path / "node-0"), DiskCache(tmp_path / "node-1")])
    assert {(problem.subject, problem.code) for problem in caught.value.problems} == {("cache_dir", 66)}
