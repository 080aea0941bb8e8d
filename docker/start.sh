#!/usr/bin/env bash
# Entry point of the images: starts the launcher of the mounted project, otherwise that of the image.
# `docker run IMAGE lr=1e-5`, `docker run IMAGE plan`, but also `docker run IMAGE bash /mnt/project/train.sh`.
set -eu

# A read-only root file system without a tmpfs on /tmp: shared memory can always be written.
[ -w "${TMPDIR:-/tmp}" ] || export TMPDIR=/dev/shm

# A program of the image, such as bash or tensorboard; settings are name=value, and no verb is the name of a program.
case "${1-}" in
    '' | -* | *=*) ;;
    *) if type -P -- "$1" > /dev/null; then exec "$@"; fi ;;
esac

home=/opt/project
project=${PROJECT_DIR:-/mnt/project}
if [ -f "$project/train.sh" ] && [ -f "$project/entrypoint.py" ]; then
    home=$project
elif [ -e "$project" ] || [ -L "$project" ]; then
    export PROJECT_DIR="$project" # a user's own project, or a broken mount: the launcher says which
fi
exec bash "$home/train.sh" "$@"
