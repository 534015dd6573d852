"""The table of a grid as a CSV file that says at its head what was asked and how to make it again."""

import json
import os
from pathlib import Path

import pandas as pd

from hsic_lab.files import replace_file
from hsic_lab.grids import Grid


def write_table(frame: pd.DataFrame, grid: Grid, path: Path, command: str) -> None:
    """The table as a CSV file that begins, behind `#`, with the question, the base settings, the data, the command."""
    plan = {"base": dict(grid.base), "cross": dict(grid.cross), "listed": list(grid.listed), "data": dict(grid.data)}
    head = {"question": grid.question} | plan | {"command": command}
    lines = [f"# {name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in head.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n" + frame.to_csv(index=False)
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_table(path: str | os.PathLike) -> pd.DataFrame:
    """A table that `write_table` wrote, the lines at its head in `attrs`: question, base, data, command.

    Raises ValueError naming the file if it is no such table.
    """
    head: dict[str, str] = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.startswith("# "):
                break
            name, _, value = line[2:].rstrip("\n").partition(": ")
            head[name] = value
        file.seek(0)
        frame = pd.read_csv(file, skiprows=len(head))
    if not {"question", "command"} <= head.keys() or "evaluation" not in frame:
        raise ValueError(f"{path} is no table of an ablation: it begins with {list(head) or list(frame.columns)[:3]}")
    frame.attrs.update(head)
    return frame
