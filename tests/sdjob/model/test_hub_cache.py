"""A mounted cache of the hub is a model; a snapshot that was mounted without its blobs is named. Tests of locate.py."""

import shutil
from pathlib import Path

import pytest

from sdjob.model import hub_cache
from sdjob.model.pipeline import find_pipeline
from sdjob.problems import JobError
from tests.support.pipeline import make_fitting


def add_snapshot(repository: Path, revision: str, *, main: bool = True) -> Path:
    """A snapshot as huggingface_hub leaves it: links into blobs/."""
    snapshot = make_fitting(repository / "snapshots" / revision)
    blobs = repository / "blobs"
    blobs.mkdir(exist_ok=True)
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        blob = path.replace(blobs / f"{revision}{number}")
        path.symlink_to(Path(*[".."] * (len(path.relative_to(repository).parts) - 1), "blobs", blob.name))
    if main:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs/main").write_text(revision)
    return snapshot


def found(root, name=None) -> Path:
    return find_pipeline(root, name, allow_pickle=False).path


def problem_of(root, name=None):
    with pytest.raises(JobError) as caught:
        found(root, name)
    return caught.value.problems[0]


@pytest.fixture
def cache(tmp_path):
    add_snapshot(tmp_path / "cache/models--org--tiny", "abc")
    (tmp_path / "cache/version.txt").write_text("1")
    return tmp_path / "cache"


def test_the_cache_or_one_of_its_repositories_is_mounted(cache, tmp_path):
    snapshot = cache / "models--org--tiny/snapshots/abc"
    assert found(cache) == found(cache / "models--org--tiny") == found(snapshot) == snapshot
    assert found(cache, "org/tiny") == found(cache, "models--org--tiny") == snapshot
    home = tmp_path / "home"
    shutil.copytree(cache, home / "hub", symlinks=True)
    assert found(home) == found(home, "org/tiny") == home / "hub" / snapshot.relative_to(cache)


def test_refs_main_chooses_among_snapshots(cache):
    newer = add_snapshot(cache / "models--org--tiny", "def")
    assert found(cache) == newer
    (cache / "models--org--tiny/refs/main").write_text("abc\n")
    assert found(cache).name == "abc"
    (cache / "models--org--tiny/refs/main").unlink()
    problem = problem_of(cache)
    assert problem.code == 66 and "holds 2 snapshots: abc, def" in problem.found
    assert found(cache, "models--org--tiny/snapshots/def") == newer


def test_several_models_need_a_name(cache):
    other = add_snapshot(cache / "models--org--other", "abc")
    problem = problem_of(cache)
    assert "holds 2 pipelines: models--org--other, models--org--tiny" in problem.found
    assert found(cache, "org/other") == other


def test_what_else_is_in_a_cache_does_not_matter(cache):
    part = cache / "models--openai--clip/snapshots/abc"
    part.mkdir(parents=True)
    (part / "config.json").write_text("{}")
    (cache / "models--openai--clip/refs").mkdir()
    (cache / "datasets--org--data/snapshots/abc").mkdir(parents=True)
    assert found(cache).parent.parent.name == "models--org--tiny"


def test_a_repository_without_snapshots(cache):
    shutil.rmtree(cache / "models--org--tiny/snapshots/abc")
    assert "without a snapshot" in problem_of(cache).found


def test_a_snapshot_without_its_blobs(cache, tmp_path):
    """Mounted alone, or copied with its links."""
    alone = shutil.copytree(cache / "models--org--tiny/snapshots/abc", tmp_path / "alone", symlinks=True)
    problem = problem_of(alone)
    assert (problem.code, problem.subject) == (66, str(alone / "model_index.json"))
    assert problem.found.startswith("is a link to ../../blobs/abc") and "does not exist here" in problem.found
    assert problem.remedy == "Mount the whole folder with what it links to, or copy it with cp -rL."
    for path in alone.glob("*.json"):
        path.unlink()
        shutil.copy(cache / "models--org--tiny/snapshots/abc" / path.name, path)
    with pytest.raises(JobError) as caught:
        found(alone)
    assert all("is a link to" in problem.found for problem in caught.value.problems)


def test_a_name_that_the_cache_does_not_hold(cache):
    assert hub_cache.repository_of(cache, "org/none") is None
    assert hub_cache.repository_of(cache, None) is None
    assert "does not exist" in problem_of(cache, "org/none").found
