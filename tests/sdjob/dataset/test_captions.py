"""The first captions of every format, and which prompts need counting at all."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sdjob.dataset.captions import first_captions
from sdjob.dataset.detect import find_dataset
from sdjob.model import prompts
from sdjob.model.pipeline import find_pipeline
from sdjob.problems import JobError
from tests.sdjob.dataset.test_images import encoded
from tests.support.pipeline import make_fitting

COUNT = 5


def png() -> bytes:
    return encoded(Image.new("RGB", (8, 8)))


def captions(folder, limit=100):
    info = find_dataset(folder, None, captions=True, image_column="image", caption_column="text")
    return first_captions(info, limit)


def test_text_files(tmp_path):
    for number in range(COUNT):
        (tmp_path / f"{number}.png").write_bytes(png())
        (tmp_path / f"{number}.txt").write_text(f"\ufeffcaption {number}\n", encoding="utf-8")
    assert captions(tmp_path, 2) == ["caption 0", "caption 1"]
    assert len(captions(tmp_path)) == COUNT
    (tmp_path / "1.txt").write_bytes(b"\xff")
    with pytest.raises(JobError) as caught:
        captions(tmp_path)
    assert "1.txt" in caught.value.problems[0].subject


def test_metadata(tmp_path):
    rows = []
    for number in range(COUNT):
        (tmp_path / f"{number}.png").write_bytes(png())
        rows.append(json.dumps({"file_name": f"{number}.png", "text": f"caption {number}"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    assert captions(tmp_path, 2) == ["caption 0", "caption 1"]
    assert len(captions(tmp_path)) == COUNT


def test_parquet_files_one_after_the_other(tmp_path):
    for file in range(2):
        texts = [f"caption {file}-{row}" for row in range(COUNT)]
        pq.write_table(
            pa.table({"image": [png()] * COUNT, "text": texts}),
            tmp_path / f"train-0000{file}-of-00002.parquet",
        )
    assert captions(tmp_path, COUNT + 1) == [*(f"caption 0-{row}" for row in range(COUNT)), "caption 1-0"]


def test_a_saved_dataset(tmp_path):
    import datasets

    rows = {"image": [png()] * COUNT, "text": [f"caption {row}" for row in range(COUNT)]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    assert captions(tmp_path / "saved", 2) == ["caption 0", "caption 1"]


@pytest.fixture
def model(tmp_path):
    return find_pipeline(make_fitting(tmp_path / "model"), None, allow_pickle=False)


def test_short_prompts_need_no_tokenizer(model, monkeypatch):
    monkeypatch.setattr(prompts, "count_tokens", None)
    assert prompts.too_long(["a" * 75, "", "ü" * 37], model) == []


def test_long_prompts_are_counted(model):
    assert prompts.too_long(["a " * 75, "a " * 76, "a" * 75, "a" * 76], model) == ["a " * 76, "a" * 76]
    assert prompts.too_long(["a " * 76, "a " * 150, "a " * 151], model, chunks=2) == ["a " * 151]


def test_the_shorter_of_two_limits_counts(model):
    assert prompts.max_tokens(model) == 77
    path = model.parts["tokenizer"].folder / "tokenizer_config.json"
    path.write_text(json.dumps({"model_max_length": 1e30}))
    assert prompts.max_tokens(model) == 77
    path.write_text(json.dumps({"model_max_length": 32}))
    assert prompts.max_tokens(model) == 32


def test_a_tokenizer_that_cannot_be_used(model):
    (model.parts["tokenizer"].folder / "vocab.json").write_text('{"a": 0}')  # without the mark of the end
    with pytest.raises(JobError) as caught:
        prompts.too_long(["a" * 76], model)
    assert caught.value.problems[0].subject == str(model.parts["tokenizer"].folder)
