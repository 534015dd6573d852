"""The README is short, its numbers are those of the tables, its links lead somewhere and its code runs."""

import re
from pathlib import Path

import pandas as pd

import hsic_lab
from hsic_lab.evaluation import probe_summary

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_probe_table_is_the_committed_one():
    summary = probe_summary(pd.read_csv(ROOT / "data/results/demo/probe.csv"))
    rows = re.findall(r"^\| ([\w ]+) \| (0\.\d+) \| (0\.\d+) \|$", TEXT, re.MULTILINE)
    assert rows == [(name, f"{row['mean']:.3f}", f"{row['std']:.3f}") for name, row in summary.iterrows()]


def test_the_accuracies_in_float32_are_those_of_their_table():
    summary = probe_summary(pd.read_csv(ROOT / "data/results/demo/probe_float32.csv"))
    means, spread = summary["mean"], summary["std"]["HSIC_SSL"]
    words = f"in float32, the last two rows were {means['Barlow Twins']:.3f} and {means['HSIC_SSL']:.3f} "
    words += f"(standard deviation of the latter: {spread:.3f})"
    assert words in " ".join(TEXT.split())


def test_every_link_inside_the_project_leads_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    exec(block, {})


def test_the_torch_of_the_readme_is_the_tested_one():
    """With another version the next installation would replace the CPU build."""
    (version,) = re.findall(r"pip install (torch==\S+) ", TEXT)
    assert version in (ROOT / "constraints.txt").read_text().splitlines()


def test_readme_is_short():
    assert len(TEXT.splitlines()) <= 150


def test_every_notebook_is_in_the_map():
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        assert f"(notebooks/{path.name})" in TEXT
        assert f"(../notebooks/{path.name})" in (ROOT / "docs/course.md").read_text()


def test_every_module_in_the_map_exists():
    rows = re.findall(r"^\| .*\.ipynb\).* \| (.*) \|$", TEXT, re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(names) > 12 and names <= set(dir(hsic_lab))


def test_the_changelog_names_the_version():
    assert f"## {hsic_lab.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {hsic_lab.__version__}" in (ROOT / "CITATION.cff").read_text()
