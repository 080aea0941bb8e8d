#!/usr/bin/env bash
# What the images start: the launcher of the project that is mounted, or else of the one that is baked in.
# `docker run IMAGE lr=1e-5`, `docker run IMAGE plan`, but also `docker run IMAGE bash /mnt/project/train.sh`.
set -eu

# A read-only root file system without a tmpfs on /tmp: shared memory can always be written.
[ -w "${TMPDIR:-/tmp}" ] || export TMPDIR=/dev/shm

# A program of the image, such as bash or tensorboard; settings are name=value, verbs are no programs.
case "${1-}" in
    '' | -* | *=*) ;;
    *) if type -P -- "$1" > /dev/null; then exec "$@"; fi ;;
esac

home=/opt/project
project=${PROJECT_DIR:-/mnt/project}
if [ -f "$project/train.sh" ] && [ -f "$project/entrypoint.py" ]; then
    home=$project
elif [ -e "$project" ] || [ -L "$project" ]; then
    export PROJECT_DIR="$project" # a project of the user's own, or a mount that went wrong: the launcher says which
fi
exec bash "$home/train.sh" "$@"
