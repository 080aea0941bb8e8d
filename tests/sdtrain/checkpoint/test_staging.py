"""Copies for background saves: they keep their values, and their memory is used again."""

import torch

from sdtrain.checkpoint.staging import Staging


def tables(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"master": {"unet.": torch.full((5,), value)}, "ema": {"unet.": torch.full((5,), -value)}}


def test_copies_keep_their_values_and_the_next_ones_lie_in_the_same_memory(tmp_path):
    staging, changing, written = Staging(torch.device("cpu")), tables(1.0), []
    first = staging.copies(changing)
    staging.before_change()
    changing["master"]["unet."].add_(1)
    staging.write(lambda folder: written.append((folder, first["master"]["unet."].tolist())), tmp_path)
    assert written == [(tmp_path, [1.0] * 5)]
    second = staging.copies(tables(3.0))
    for table, value in (("master", 3.0), ("ema", -3.0)):
        assert second[table]["unet."].tolist() == [value] * 5
        assert second[table]["unet."].data_ptr() == first[table]["unet."].data_ptr()
