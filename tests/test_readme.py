"""The README's numbers are those of the tables beside it, and what it points to exists."""

import re
from pathlib import Path

import pandas as pd

from hsic_lab.evaluation import probe_summary

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_probe_table_is_the_committed_one():
    summary = probe_summary(pd.read_csv(ROOT / "data/results/demo/probe.csv"))
    rows = re.findall(r"^\| ([\w ]+) \| (0\.\d+) \| (0\.\d+) \|$", TEXT, re.MULTILINE)
    assert rows == [(name, f"{row['mean']:.3f}", f"{row['std']:.3f}") for name, row in summary.iterrows()]


def test_every_link_inside_the_project_leads_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_import_in_the_readme_works():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    for line in (line for block in blocks for line in block.splitlines() if line.startswith(("from ", "import "))):
        exec(line, {})
