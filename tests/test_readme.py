"""The README's numbers are those of the tables beside it, and what it points to exists."""

import re
from pathlib import Path

import pandas as pd
import pytest

from hsic_lab.ablation import read_table
from hsic_lab.comparisons import paired_difference, summarize
from hsic_lab.evaluation import probe_summary

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def of(name, cut=None):
    table = read_table(ROOT / f"data/results/ablation_{name}.csv")
    return table if cut is None else table.query(cut)


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


BOTH_OR_NEITHER = "(predictor == '64') == (target == 'stop_gradient')"

# file, cut, factor, first, second, their names
VERDICTS = [
    ("batch_size", "batch_size == 32", "loss", "barlow_twins", "hsic_ssl", ("Barlow Twins", "HSIC_SSL")),
    ("batch_size", "batch_size == 256", "loss", "barlow_twins", "hsic_ssl", ("Barlow Twins", "HSIC_SSL")),
    ("batch_size", "batch_size == 1024", "loss", "barlow_twins", "hsic_ssl", ("Barlow Twins", "HSIC_SSL")),
    ("batch_size_updates", "batch_size == 1024", "loss", "barlow_twins", "hsic_ssl", ("Barlow Twins", "HSIC_SSL")),
    ("cifar10_batch_size", "batch_size == 64", "loss", "barlow_twins", "hsic_ssl", ("Barlow Twins", "HSIC_SSL")),
    ("cifar10_batch_size", "batch_size == 1024", "loss", "barlow_twins", "hsic_ssl", ("Barlow Twins", "HSIC_SSL")),
    ("target", None, "off_diagonal_target", 0.0, -1.0, ("target 0", "target -1")),
    ("symmetry", "loss == 'barlow_twins' and target == 'same'", "predictor", "none", "64",
     ("plain Barlow Twins", "with a predictor")),
    ("symmetry", f"loss == 'barlow_twins' and {BOTH_OR_NEITHER}", "predictor", "none", "64",
     ("plain Barlow Twins", "with predictor and stopped gradient")),
    ("symmetry", f"loss == 'negative_cosine' and {BOTH_OR_NEITHER}", "predictor", "none", "64",
     ("plain negative cosine", "SimSiam")),
    ("symmetry", f"{BOTH_OR_NEITHER} and (predictor == '64') == (loss == 'negative_cosine')", "loss",
     "barlow_twins", "negative_cosine", ("plain Barlow Twins", "SimSiam")),
    ("reference_code", "off_diagonal_target == -1 and not bessel", "unit_rows", False, True,
     ("the equations", "unit rows first")),
    ("width", "loss == 'barlow_twins'", "d", 64, 8192, ("d = 64", "d = 8192")),
    ("lambda", "d == 2048 and (lambda_times_d == 1 or lambda_times_d == 10)", "lambda_times_d", 1.0, 10.0,
     ("1/d", "10/d")),
    ("cifar10_lambda", "lambda_times_d == 1 or lambda_times_d == 10", "lambda_times_d", 1.0, 10.0, ("1/d", "10/d")),
    ("kernel", None, "kernel", "linear", "imq", ("linear", "inverse multiquadric")),
]


@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda v: f"{v[0]} {v[-1][1]}")
def test_every_verdict_is_that_of_its_table(verdict):
    name, cut, factor, first, second, names = verdict
    assert str(paired_difference(of(name, cut), factor, first, second, names=names)) in " ".join(TEXT.split())


def test_the_table_of_batch_sizes_is_the_committed_one():
    for name in ("batch_size", "batch_size_updates", "cifar10_batch_size"):
        means = summarize(of(name), ["loss", "batch_size"])
        for loss, part in means.groupby("loss"):
            assert f"| {loss} | {' | '.join(f'{100 * m:.1f}' for m in part['mean'])} |" in TEXT


def test_the_two_losses_are_not_told_apart_as_the_claims_say():
    by = {"width": "d", "depth": "projector"}
    by |= dict.fromkeys(("batch_size", "batch_size_updates", "cifar10_batch_size"), "batch_size")
    for name, factor in by.items():
        for _, part in of(name).groupby(factor):
            difference = paired_difference(part, "loss", "barlow_twins", "hsic_ssl")
            assert difference.low < 0 < difference.high
            assert name != "cifar10_batch_size" or abs(difference.mean) < 0.005
    assert "within half a point on CIFAR-10** at every batch size, not told apart anywhere else" in TEXT


def test_what_the_claims_say_of_batches_and_lambda():
    updates = of("batch_size_updates", "evaluation == 'linear'")
    at = updates.groupby(["loss", "batch_size"])["accuracy"].mean().unstack()
    gain = 100 * (at[1024] - at[32])
    two, three = ["barlow_twins", "hsic_ssl"], ["vicreg", "nt_xent", "ssl_hsic"]
    assert gain[two].round().tolist() == [24, 24] and (gain[three] - gain["barlow_twins"]).round().between(18, 24).all()
    assert "the two cross-correlation losses 24 points, VICReg, SimCLR and SSL-HSIC 18 to 24 points more" in TEXT
    fixed = of("batch_size", "evaluation == 'linear'").groupby(["loss", "batch_size"])["accuracy"].mean().unstack()
    assert (fixed.idxmax(axis=1) <= 128).all()

    for _, part in of("cifar10_batch_size").groupby("batch_size"):
        for loss in three:
            assert 0.01 < paired_difference(part, "loss", "barlow_twins", loss).mean < 0.04

    factors = of("lambda", "lambda_times_d == 1 or lambda_times_d == 10")
    falls = [paired_difference(part, "lambda_times_d", 1.0, 10.0).mean for _, part in factors.groupby("d")]
    assert round(100 * sum(falls) / len(falls)) == -6
    photographs = of("cifar10_lambda", "lambda_times_d == 1 or lambda_times_d == 10")
    assert round(100 * paired_difference(photographs, "lambda_times_d", 1.0, 10.0).mean) == 2
    assert "on CIFAR-10 10/d is ahead of it by 2 points, on the scenes behind by about six on average" in TEXT
