"""Damaged data: a correct read or a clear error, never a hang and never an exception of another kind."""

import io
import json
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sdjob.dataset.detect import find_dataset
from sdjob.dataset.images import ImageError, decode
from sdjob.dataset.verify import verify_sample
from sdjob.model.pipeline import find_pipeline
from sdjob.problems import JobError
from tests.support.single import sparse

SHORT, LONG = 60, 5000
COUNTS = pytest.mark.parametrize("count", [SHORT, pytest.param(LONG, marks=pytest.mark.long)])
PATIENCE = timedelta(seconds=20)


def fuzz(test, count: int) -> None:
    """Runs a test on so many examples; the same ones every time."""
    chosen = settings(
        max_examples=count,
        deadline=PATIENCE,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    chosen(test)()


def damaged(originals: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of the originals with bytes changed, taken out, put in, moved, or cut off."""
    place = st.integers(0, max(map(len, originals)))
    change = st.one_of(
        st.tuples(st.just("set"), place, st.integers(0, 255)),
        st.tuples(st.just("cut"), place, st.just(0)),
        st.tuples(st.just("drop"), place, st.integers(1, 40)),
        st.tuples(st.just("put"), place, st.binary(min_size=1, max_size=12)),
        st.tuples(st.just("copy"), place, place),
    )
    return st.builds(_changed, st.sampled_from(originals), st.lists(change, min_size=1, max_size=6))


def _changed(content: bytes, changes: list[tuple]) -> bytes:
    for kind, place, what in changes:
        head, tail = content[:place], content[place:]
        match kind:
            case "set":
                content = head + bytes([what]) + tail[1:]
            case "cut":
                content = head
            case "drop":
                content = head + tail[what:]
            case "put":
                content = head + what + tail
            case "copy":
                content = head + content[what : what + 16] + tail[16:]
    return content


def encoded(kind: str, mode: str = "RGB", **options) -> bytes:
    image = Image.radial_gradient("L").resize((12, 10)).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif() -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = 6  # lies on its side
    return found


IMAGES = {
    "png": [encoded("PNG"), encoded("PNG", "P"), encoded("PNG", "RGBA"), encoded("PNG", "I;16")],
    "jpg": [encoded("JPEG", exif=exif()), encoded("JPEG", "L", progressive=True), encoded("JPEG", "CMYK")],
    "webp": [encoded("WEBP"), encoded("WEBP", lossless=True)],
    "gif": [encoded("GIF", "P")],
    "tif": [encoded("TIFF"), encoded("TIFF", compression="tiff_deflate"), encoded("TIFF", "F")],
    "bmp": [encoded("BMP"), encoded("BMP", "P")],
}


def test_the_images_are_good_before_they_are_damaged():
    for originals in IMAGES.values():
        for content in originals:
            assert decode(content).mode == "RGB"


@COUNTS
@pytest.mark.parametrize("kind", IMAGES)
def test_damaged_images(kind, count):
    @given(damaged(IMAGES[kind]))
    def test(content):
        try:
            image = decode(content)
        except ImageError as error:
            assert error.reason
        else:
            assert image.mode == "RGB" and len(image.tobytes()) == 3 * image.width * image.height

    fuzz(test, count)


def read(folder: Path) -> int | None:
    """The number of examples of a dataset that can be used, None where an error says why it cannot."""
    try:
        info = find_dataset(folder, None, captions=True, image_column="image", caption_column="text")
        problems = verify_sample(info, 3).bad
    except JobError as error:
        problems = list(error.problems)
    assert all(problem.found and problem.remedy for problem in problems)
    return None if problems else info.num_examples


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two images, as files and as bytes."""
    folder = tmp_path_factory.mktemp("images")
    contents = [IMAGES["png"][0], IMAGES["jpg"][0]]
    for name, content in zip("ab", contents, strict=True):
        (folder / f"{name}.png").write_bytes(content)
    return folder, contents


ROWS = [{"file_name": "a.png", "text": "a, “quoted” caption"}, {"file_name": "b.png", "text": "another"}]
METADATA = {
    "metadata.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode(),
    "metadata.csv": b'file_name,text\na.png,"a, ""quoted"" caption"\nb.png,another\n',
}


@COUNTS
@pytest.mark.parametrize("name", METADATA)
def test_damaged_metadata(images, tmp_path, name, count):
    folder, _ = images
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / name).write_bytes(METADATA[name])
    assert read(tmp_path) == 2

    @given(damaged([METADATA[name]]))
    def test(content):
        (tmp_path / name).write_bytes(content)
        read(tmp_path)

    fuzz(test, count)


@COUNTS
@pytest.mark.parametrize("compression", ["snappy", "none"])
def test_damaged_parquet(images, tmp_path, compression, count):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    _, contents = images
    rows = [{"bytes": content, "path": None} for content in contents]
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": rows, "text": ["a", "b"]}), file, compression=compression)
    original = file.read_bytes()
    assert read(tmp_path) == 2

    @given(damaged([original]))
    def test(content):
        file.write_bytes(content)
        read(tmp_path)

    fuzz(test, count)


SD_1 = {
    "model.diffusion_model.input_blocks.0.0.weight": (2, 4, 1, 1),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (1, 768),
    "first_stage_model.quant_conv.bias": (8,),
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": (3,),
}


def model_files(folder: Path) -> dict[str, bytes]:
    """The beginning of a model of the first version, in both formats."""
    torch = pytest.importorskip("torch")
    sparse(folder / "model.safetensors", SD_1, **{"modelspec.prediction_type": "v"})
    state = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in SD_1.items()}
    torch.save({"state_dict": state, "global_step": 3}, folder / "model.ckpt")
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@COUNTS
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_damaged_models_in_one_file(tmp_path, suffix, count):
    content = model_files(tmp_path)[suffix]
    file = tmp_path / f"damaged{suffix}"

    file.write_bytes(content)
    assert find_pipeline(file, None, allow_pickle=True).single.title == "Stable Diffusion 1.x"

    @given(damaged([content]))
    def test(content):
        file.write_bytes(content)
        try:
            find_pipeline(file, None, allow_pickle=True)
        except JobError as error:
            assert all(problem.found and problem.remedy for problem in error.problems)

    fuzz(test, count // 3)
