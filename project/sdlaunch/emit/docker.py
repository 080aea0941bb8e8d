"""`emit docker`: one `docker run` command."""

from __future__ import annotations

from sdlaunch.emit.task import Task, Volume, shell_words


def render(task: Task) -> str:
    """One option per line. The container runs as the user who starts it, to whom the output folder belongs."""
    gpus = {None: ["--gpus=all"], 0: []}.get(task.gpus, [f"--gpus={task.gpus}"])
    options = [
        *([option] for option in gpus),
        [f"--shm-size={task.shm_size}"],
        [f"--stop-timeout={task.grace}"],
        *([["--network=host"]] if task.nodes > 1 else []),
        *(["--mount", _mount(volume)] for volume in task.volumes),
        *(["--env", f"{name}={value}"] for name, value in {**task.env, **task.cluster_env}.items()),
        [task.image, "bash", task.start],
    ]
    return " \\\n  ".join(["docker run --rm", '--user="$(id -u):0"', *map(shell_words, options)])


def _mount(volume: Volume) -> str:
    read_only = ["readonly"] if volume.read_only else []
    fields = ["type=bind", f"source={volume.source}", f"target={volume.target}", *read_only]
    return ",".join(map(_csv_field, fields))


def _csv_field(text: str) -> str:
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if set(text) & set(',"\n') else text
