#!/usr/bin/env bash
# Start command of a training job: bash train.sh [verb] [name=value ...]; --help lists all verbs.
# Works from any working directory; needs Python 3.10 or newer with the packages of the project.
IFS= read -r line <"$0"; case $line in *$'\r') printf '%s\n' "$0: has line ends of Windows (CRLF)" "    → Convert it: sed -i 's/\\r\$//' '$0'" >&2; exit 66 ;; esac # a CR here is part of this comment
set -eu

self=$(readlink -f -- "$0")
home=${self%/*}

# An image names its own Python: a .venv that was mounted along with the project is of another machine.
python=${LAUNCHER_PYTHON:-$home/.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3 || true)
if [ -z "$python" ]; then
    printf '%s\n' 'Python: not found' \
        '    → Install Python 3.10 or newer, or use an image that has it.' >&2
    exit 69
fi
if ! error=$("$python" -S -c '' 2>&1); then
    error=${error##*Fatal Python error: } names=${!PYTHON@}
    printf '%s\n' "Python: $python does not start: ${error%%$'\n'*}" \
        "    → Set LAUNCHER_PYTHON to a Python that starts${names:+, or unset the variable at fault: $names}." >&2
    exit 69
fi

# The project may be mounted read only: no __pycache__ there. Prompts are UTF-8 whatever the image's locale is.
export PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1
exec "$python" "$home/entrypoint.py" "$@"
