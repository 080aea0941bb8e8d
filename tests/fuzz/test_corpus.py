"""Contents that once ended otherwise than documented, and some new ones of every file.

Tests of mutations, run and targets: `make fuzz` adds to the corpus.
"""

import pytest

from tests.fuzz import run, targets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    workspace, every = targets.prepare(root)
    return root, workspace, {target.name: target for target in every}


@pytest.mark.parametrize("case", sorted(run.CORPUS.iterdir()), ids=lambda path: path.name)
def test_a_case_of_the_corpus(prepared, case):
    root, workspace, every = prepared
    every[case.name.rpartition("-")[0]].run(root, workspace, case.read_bytes())


COUNTS = [2, pytest.param(300, marks=pytest.mark.long)]


@pytest.mark.parametrize("count", COUNTS)
def test_new_contents_of_every_file(prepared, count):
    root, workspace, every = prepared
    for target in every.values():
        examples = 20 * count if target.path.startswith("notes/") else count  # these take no plan
        found = run.search(target, lambda content, of=target: of.run(root, workspace, content), examples, 0)
        assert found is None, (target.path, *found)


def test_a_case_that_fails_is_found_and_made_small():
    def refuse(content: bytes) -> None:
        if b"\0" in content:
            raise ZeroDivisionError

    target = targets.Target("a.json", (b'{"a": [1, 2]}',))
    content, error = run.search(target, refuse, 500, 0)
    assert content == b"\0" and isinstance(error, ZeroDivisionError)
    assert run.search(target, lambda _: None, 50, 0) is None
