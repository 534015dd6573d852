"""The README's numbers are those of the tables beside it, and what it points to exists."""

import re
from pathlib import Path

import pandas as pd
import pytest

from hsic_lab.ablation import paired_difference, read_table, summarize
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


LOSSES = ("loss", "barlow_twins", "hsic_ssl")
BOTH_OR_NEITHER = "(predictor == '64') == (target == 'stop_gradient')"

# what is compared, the ablation on the scenes (cifar10_NAME: on CIFAR-10), a cut, the factor, second minus first
DIFFERENCES = [
    ("HSIC_SSL minus Barlow Twins, batch 32 (CIFAR-10: 64)", "batch_size", "batch_size == batch_size.min()", *LOSSES),
    ("the same, batch 256", "batch_size", "batch_size == 256", *LOSSES),
    ("the same, batch 1024", "batch_size", "batch_size == 1024", *LOSSES),
    ("the same, batch 1024, 128 updates", "batch_size_updates", "batch_size == 1024", *LOSSES),
    ("HSIC_SSL: target -1 minus target 0", "target", None, "off_diagonal_target", 0.0, -1.0),
    (
        "Barlow Twins: predictor minus neither",
        "symmetry",
        "loss == 'barlow_twins' and target == 'same'",
        "predictor",
        "none",
        "64",
    ),
    (
        "Barlow Twins: predictor and stopped gradient minus neither",
        "symmetry",
        f"loss == 'barlow_twins' and {BOTH_OR_NEITHER}",
        "predictor",
        "none",
        "64",
    ),
    (
        "negative cosine: both (SimSiam) minus neither",
        "symmetry",
        f"loss == 'negative_cosine' and {BOTH_OR_NEITHER}",
        "predictor",
        "none",
        "64",
    ),
    (
        "SimSiam minus Barlow Twins with neither",
        "symmetry",
        f"{BOTH_OR_NEITHER} and (predictor == '64') == (loss == 'negative_cosine')",
        "loss",
        "barlow_twins",
        "negative_cosine",
    ),
    (
        "the report's code (target -1, no Bessel): rows scaled to length 1 first minus rows as they are",
        "reference_code",
        "off_diagonal_target == -1 and not bessel",
        "unit_rows",
        False,
        True,
    ),
    ("Barlow Twins, lambda = 1/d: d = 8192 minus d = 64", "width", "loss == 'barlow_twins'", "d", 64, 8192),
    (
        "Barlow Twins: projector of three layers minus one",
        "depth",
        "loss == 'barlow_twins'",
        "projector",
        "128",
        "256-256-128",
    ),
    ("Barlow Twins, d = 128: lambda = 10/d minus 1/d", "lambda", "d == 128", "lambda_times_d", 1.0, 10.0),
    ("SSL-HSIC: Gaussian kernel minus linear", "kernel", None, "kernel", "linear", "gaussian"),
    ("SSL-HSIC: inverse multiquadric minus linear", "kernel", None, "kernel", "linear", "imq"),
]


def cell(name, cut, *comparison):
    """Points gained with their 95 % interval, in bold where it leaves 0 out."""
    if not (ROOT / f"data/results/ablation_{name}.csv").exists():
        return "–"
    difference = paired_difference(of(name, cut), *comparison)
    assert len(difference.differences) == 5
    text = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * v for v in (difference.mean, difference.low, difference.high)))
    return text if difference.low < 0 < difference.high else f"**{text}**"


@pytest.mark.parametrize("row", DIFFERENCES, ids=lambda row: row[0])
def test_every_difference_is_that_of_its_table(row):
    label, name, *comparison = row
    assert f"| {label} | {cell(name, *comparison)} | {cell(f'cifar10_{name}', *comparison)} |" in TEXT


def test_the_table_of_batch_sizes_is_the_committed_one():
    for name in ("batch_size", "batch_size_updates", "cifar10_batch_size"):
        means = summarize(of(name), ["loss", "batch_size"])
        for loss, part in means.groupby("loss"):
            assert f"| {loss} | {' | '.join(f'{100 * m:.1f}' for m in part['mean'])} |" in TEXT


def test_the_two_losses_are_told_apart_once_as_the_claims_say():
    factors = {"batch_size": "batch_size", "batch_size_updates": "batch_size", "width": "d", "depth": "projector"}
    factors |= {f"cifar10_{name}": factors[name] for name in ("batch_size", "width", "depth")}
    parts = {(name, level): part for name, factor in factors.items() for level, part in of(name).groupby(factor)}
    found = {key: paired_difference(part, *LOSSES) for key, part in parts.items()}
    different = {frozenset(part["run"][part["loss"].isin(LOSSES)]) for part in parts.values()}  # grids share runs
    assert all(abs(one.mean) < 0.005 for (name, _), one in found.items() if name.startswith("cifar10"))
    assert [key for key, one in found.items() if not one.low < 0 < one.high] == [("cifar10_width", 512)]
    assert round(100 * found["cifar10_width", 512].mean, 1) == -0.3
    assert "on CIFAR-10 the means are within half a point** at every batch size, width and depth" in TEXT
    assert f"Of {len(different)} intervals on both sets one leaves out 0" in TEXT
    assert "HSIC_SSL is 0.3 points behind on CIFAR-10 at d = 512" in TEXT
    photographs = [one for (name, _), one in found.items() if name.startswith("cifar10")]
    reach = max(max(-one.low, one.high) for one in photographs)
    assert f"(the intervals reach {100 * reach:.1f})" in TEXT


def test_what_an_untrained_encoder_answers_is_that_of_its_table():
    means = pd.read_csv(ROOT / "data/results/cpu_cifar10_short.csv").groupby("encoder")["linear"].mean()
    untrained, trained = (f"{100 * means[name]:.1f} %" for name in ("untrained", "barlow_twins"))
    text = " ".join(TEXT.split())
    assert f"answers {untrained} on CIFAR-10; 8 epochs of Barlow Twins make it {trained}" in text


def test_what_the_claims_say_of_symmetry_width_and_kernels():
    def points(row):
        _, name, cut, *levels = row
        return [100 * paired_difference(of(one, cut), *levels).mean for one in (name, f"cifar10_{name}")]

    predictor, both, simsiam, _ = (points(row) for row in DIFFERENCES if row[1] == "symmetry")
    assert round(predictor[0]) == -4 and -7 < both[0] < -6 and max(abs(predictor[1]), abs(both[1])) < 1
    assert "a predictor costs it 4 points, predictor and stopped gradient together 6 to 7; on CIFAR-10 nothing" in TEXT
    assert [round(p) for p in simsiam] == [17, 15] and "gains 15 to 17 points by them" in TEXT
    for loss, part in of("cifar10_width").groupby("loss"):
        means = part[part["evaluation"] == "linear"].groupby("d")["accuracy"].mean()
        assert means.max() - means.min() < 0.01, loss
    assert "from d = 64 to 8 192 the means are within a point" in TEXT
    gaussian, imq = (points(row) for row in DIFFERENCES if row[1] == "kernel")
    assert [round(gaussian[0]), round(imq[0])] == [7, 10] and 0 < gaussian[1] < 1 and 0 < imq[1] < 1
    assert "gain 7 and 10 points on the scenes; on CIFAR-10 less than one" in TEXT
    (width,) = (points(row) for row in DIFFERENCES if row[1] == "width")
    assert round(width[0]) == 5 and "the widest is ahead of the narrowest by five points" in TEXT


def test_what_the_claims_say_of_batches_and_lambda():
    updates = of("batch_size_updates", "evaluation == 'linear'")
    at = updates.groupby(["loss", "batch_size"])["accuracy"].mean().unstack()
    gain = 100 * (at[1024] - at[32])
    two, three = ["barlow_twins", "hsic_ssl"], ["vicreg", "nt_xent", "ssl_hsic"]
    assert gain[two].round().tolist() == [24, 24] and (gain[three] - gain["barlow_twins"]).round().between(18, 25).all()
    assert "the two cross-correlation losses 24 points, VICReg, SimCLR and SSL-HSIC 18 to 25 points more" in TEXT
    fixed = of("batch_size", "evaluation == 'linear'").groupby(["loss", "batch_size"])["accuracy"].mean().unstack()
    assert (fixed.idxmax(axis=1) <= 128).all() and "needs none, but nor does SimCLR** (`nt_xent`)" in TEXT

    ahead = [
        paired_difference(part, "loss", one, other)
        for _, part in of("cifar10_batch_size").groupby("batch_size")
        for one in two
        for other in three
    ]
    assert {round(100 * one.mean) for one in ahead} == {1, 2, 3} and all(one.low > 0 for one in ahead)
    assert "On CIFAR-10, passes fixed, these three are ahead of the two by one to three points" in TEXT

    factors = of("lambda", "lambda_times_d == 1 or lambda_times_d == 10")
    falls = {d: paired_difference(part, "lambda_times_d", 1.0, 10.0) for d, part in factors.groupby("d")}
    assert round(100 * sum(one.mean for one in falls.values()) / len(falls)) == -6 and len(falls) == 3
    assert [d for d, one in falls.items() if one.high < 0] == [64]
    assert "on average over three widths, shown at d = 64 only" in TEXT
    photographs = of("cifar10_lambda", "lambda_times_d == 1 or lambda_times_d == 10")
    assert round(100 * paired_difference(photographs, "lambda_times_d", 1.0, 10.0).mean) == 2
    assert "on CIFAR-10 (d = 128) 10/d is ahead of it by 2 points, on the scenes behind by about six on average" in TEXT


def test_what_the_compiled_kernel_gains_is_measured():
    assert "encoders train a tenth\nto a quarter faster on CPUs that multiply bfloat16" in TEXT
    tables = [pd.read_csv(ROOT / f"data/results/training_cpu_{cpu}.csv") for cpu in ("epyc", "xeon")]
    gains = [table["kernel gain"].median() for table in tables]
    assert 0.08 < gains[0] < 0.15 and 0.2 < gains[1] < 0.3
