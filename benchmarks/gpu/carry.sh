#!/usr/bin/env bash
# Fetch what a GPU machine without a network lacks into .carry/: wheels for its Python, and the example script of diffusers.
#   carry.sh [PYTHON_VERSION]   3.12 unless given
# There: python3 -m pip install --no-index --no-deps --target /tmp/site .carry/*.whl && export PYTHONPATH=/tmp/site
set -euo pipefail
cd "$(dirname "$0")/../.."
version=${1:-3.12}
python=${PYTHON:-python3}
most=$((55 * 1024 * 1024))
mkdir -p .carry
platforms=()
for glibc in 2_28 2_27 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
grep -v '^#\|^colossalai' benchmarks/gpu/requirements-carry.txt > .carry/wheels.txt
"$python" -m pip download --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    "${platforms[@]}" --platform manylinux2014_x86_64 --dest .carry --requirement .carry/wheels.txt
# Published as sources alone, without anything to compile.
BUILD_EXT=0 "$python" -m pip wheel --no-deps --wheel-dir .carry "$(grep '^colossalai' benchmarks/gpu/requirements-carry.txt)"
if [ ! -f .carry/train_text_to_image.py ]; then
    tag=v$(sed -n 's/^diffusers==//p' benchmarks/gpu/requirements-carry.txt)
    if git clone --quiet --depth 1 --branch "$tag" https://github.com/huggingface/diffusers .carry/diffusers; then
        cp .carry/diffusers/examples/text_to_image/train_text_to_image.py .carry/
        rm -rf .carry/diffusers
    else
        echo "no example script: put train_text_to_image.py of diffusers $tag into .carry, or leave out the part peer" >&2
    fi
fi
rm .carry/wheels.txt
size=$(du -sb .carry | cut -f1)
echo ".carry: $((size / 1024 / 1024)) MiB"
[ "$size" -le "$most" ] || { echo "more than 55 MiB" >&2; exit 1; }
