"""python -m sddemo DIR: a model and a dataset to try everything on."""

from __future__ import annotations

import argparse
from pathlib import Path

from sddemo.subject import CLASS_PROMPT, INSTANCE_PROMPT
from sddemo.write_demo import write_demo


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sddemo", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write model/ and dataset/")
    parser.add_argument(
        "--captioned",
        type=int,
        default=0,
        metavar="N",
        help="also write dataset_captioned/ with N captioned images",
    )
    arguments = parser.parse_args()
    write_demo(arguments.folder, arguments.captioned)
    print(f"wrote {arguments.folder / 'model'} and {arguments.folder / 'dataset'}")
    print(f"instance prompt: {INSTANCE_PROMPT}    class prompt: {CLASS_PROMPT}")


if __name__ == "__main__":
    main()
