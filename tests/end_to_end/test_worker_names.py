"""Names that are not UTF-8, as an archive from another system leaves them, from the files to every output."""

import json
import os
import shutil

from tests.support.worker import losses

FOLDER, IMAGE, LINK = (
    os.fsdecode("照片".encode("gbk")),
    os.fsdecode("图".encode("gbk")),
    os.fsdecode("坏.png".encode("gbk")),
)


def copied(source, folder):
    """The images under such names, and a dead link."""
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in source.iterdir() if path.suffix == ".png")):
        shutil.copy(path, folder / f"{IMAGE}{number}.png")
    (folder / LINK).symlink_to("not there")
    return folder


def test_a_run_on_names_that_are_not_utf8(train, instance, of_class, tmp_path, capfd):
    root = tmp_path / FOLDER
    images, classes, held_out = (
        copied(source, root / name)
        for name, source in zip("abc", (instance, of_class, instance), strict=True)
    )
    settings = {
        "recipe": "dreambooth", "with_prior_preservation": True, "class_prompt": "a shape", "num_class_images": 3,
        "center_crop": True, "cache_latents": "disk", "aspect_ratio_buckets": True, "bucket_reso_steps": 8,
        "bad_samples": "skip", "instance_data_dir": images, "class_data_dir": classes, "validation_data_dir": held_out,
    }  # fmt: skip
    output = train(**settings, max_train_steps=2)
    whole = losses(output)
    assert len(whole) == 2 and "is a link to not there" in capfd.readouterr().out
    report = json.loads((output / "report.json").read_text())
    assert len(report["bad_samples"]) == 1 and report["bad_samples"][0].endswith(r"a/\xbb\xb5.png")
    assert (output / "samples/inputs.png").exists()
    train("stopped", **settings, max_train_steps=1)
    assert losses(train("stopped", **settings, max_train_steps=2)) == whole
