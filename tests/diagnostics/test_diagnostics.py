"""Diagnostics against closed forms: sphere, redundancy, feature sums, factors, and verdicts on known failures."""

import importlib.util
import itertools
import math
import warnings
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.integrate import quad
from scipy.special import ive
from sklearn.datasets import load_digits

from hsic_lab.cka import cka
from hsic_lab.correlation import cross_correlation
from hsic_lab.diagnostics import _measures as sphere
from hsic_lab.diagnostics import (
    alignment,
    alpha_req,
    diagnose,
    factor_dependence,
    feature_sum_covariance,
    lidar,
    rankme,
    redundancy,
    uniformity,
)
from hsic_lab.diagnostics._diagnose import EXPLANATIONS, FAULTS, KINDS, VERDICTS
from hsic_lab.hsic import hsic_matrix
from hsic_lab.kernels import Delta, Gaussian, Linear


def normal(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def white(n, d, seed=0):
    """Rows whose features have mean 0, variance 1 and no correlation, exactly."""
    z = normal(n, d, seed)
    return torch.linalg.qr(z - z.mean(dim=0))[0] * math.sqrt(n)


def simplex(n, d):
    """The reachable optimum of HSIC_SSL (theory 2.3): every correlation off the diagonal is -1/(d-1)."""
    z = white(n, d)
    return z - z.mean(dim=1, keepdim=True)


def gamed(n, d):
    """Branches that game HSIC_SSL at lambda = 1/d (theory 2.4): contrasts agree, feature sums are opposed."""
    r = (d**2 - 8 * d + 4) / (5 * d**2 - 8 * d + 4)
    values, vectors = np.linalg.eigh(r * np.ones((d, d)) + (1 - r) * np.eye(d))
    x = white(n, d) @ torch.as_tensor(vectors * np.sqrt(values) @ vectors.T)
    return x, x - 2 * x.mean(dim=1, keepdim=True)


# --- the sphere


def test_alignment_and_uniformity_equal_loops():
    z_a, z_b = normal(12, 3).numpy(), normal(12, 3, 1).numpy()
    u, v = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z_a, z_b))
    for power in (1, 2, 3.5):
        expected = np.mean([np.linalg.norm(a - b) ** power for a, b in zip(u, v, strict=True)])
        assert alignment(5 * z_a, z_b, power) == pytest.approx(expected, rel=1e-12)
    for t in (0.5, 2, 300):
        terms = [-t * np.sum((a - b) ** 2) for a, b in itertools.combinations(u, 2)]
        assert uniformity(z_a, t) == pytest.approx(np.logaddexp.reduce(terms) - math.log(66), rel=1e-10)


@pytest.mark.parametrize("rows", [1, 5, 12])
def test_size_of_tiles_changes_nothing(monkeypatch, rows):
    z = normal(12, 3)
    whole = uniformity(z)
    monkeypatch.setattr(sphere, "_TILE_ROWS", rows)
    assert uniformity(z) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniformity_of_the_circle_and_of_a_point(dtype):
    # E exp(-t (2 - 2 cos)) over a uniform angle is exp(-2t) I_0(2t).
    angles = torch.arange(2000, dtype=torch.float64) / 2000 * 2 * math.pi
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    continuous = ive(0, 4.0)
    expected = math.log((2000 * continuous - 1) / 1999)  # without the pairs of a row with itself
    assert uniformity(circle.to(dtype)) == pytest.approx(expected, abs=1e-5)
    assert uniformity(torch.full((9, 4), 0.3, dtype=dtype)) == pytest.approx(0, abs=1e-6)
    z = circle.to(dtype)
    assert alignment(z, -z) == pytest.approx(4, rel=1e-6) and alignment(z, 3 * z) == pytest.approx(0, abs=1e-6)


def test_uniformity_of_many_rows_is_that_of_a_seeded_draw():
    z = normal(3000, 4)
    state = torch.random.get_rng_state()
    drawn = uniformity(z, max_rows=1000, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert drawn == uniformity(z, max_rows=1000, seed=3) != uniformity(z, max_rows=1000, seed=4)
    assert drawn == pytest.approx(uniformity(z), abs=0.05)


# --- correlations


@pytest.mark.parametrize("shape", [(200, 6), (20, 90)])
def test_redundancy_and_feature_sums_follow_from_c(shape):
    z_a, z_b = normal(*shape) + 50, normal(*shape, 1)
    n, d = shape
    for first, second in ((z_a, z_b), (z_a, None)):
        c = cross_correlation(first, first if second is None else second)
        off = c.square().sum() - c.diagonal().square().sum()
        assert redundancy(first, second) == pytest.approx(float(off - d * (d - 1) / (n - 1)), rel=1e-9)
        assert feature_sum_covariance(first, second) == pytest.approx(float(c.sum()), rel=1e-9, abs=1e-9)


def test_redundancy_of_independent_features_is_zero_for_any_number_of_rows():
    # peers: the raw squared_norm is d (d - 1) / (n - 1), 9.9 at n = 100 and 1.0 at n = 1000.
    for n in (100, 1000):
        values = [redundancy(normal(n, 32, 2 * s), normal(n, 32, 2 * s + 1)) for s in range(20)]
        error = np.std(values, ddof=1) / math.sqrt(20)
        assert abs(np.mean(values)) < 4 * error < 0.1 * 32 * 31 / (n - 1)


def test_dead_features_do_not_count_in_the_redundancy():
    z_a, z_b = normal(50, 6), normal(50, 6, 1)
    dead = torch.full((50, 3), 0.7, dtype=torch.float64)
    padded = torch.cat([z_a, dead], dim=1), torch.cat([z_b, dead], dim=1)
    assert redundancy(*padded) == pytest.approx(redundancy(z_a, z_b), rel=1e-12)
    row = diagnose(padded[0]).set_index("diagnostic").loc["feature_variance"]
    assert row["value"] == pytest.approx(np.var(z_a.numpy(), axis=0).sum() / 9, rel=1e-12)


@pytest.mark.parametrize("d", [4, 32])
def test_simplex_and_gamed_optimum(d):
    z = simplex(400, d)
    off = ~torch.eye(d, dtype=torch.bool)
    torch.testing.assert_close(cross_correlation(z, z)[off], torch.full((d * d - d,), -1 / (d - 1)).double())
    assert rankme(z) == pytest.approx(d - 1, abs=1e-4)
    assert feature_sum_covariance(z, z) == pytest.approx(0, abs=1e-9)
    assert redundancy(z) == pytest.approx(d / (d - 1) - d * (d - 1) / 399)
    x, y = gamed(400, d)
    if d == 32:
        c = cross_correlation(x, y)
        assert c.diagonal().mean() == pytest.approx(0.6302, abs=1e-4)
        assert c[off].mean() == pytest.approx(-0.21117, abs=1e-5)
        assert feature_sum_covariance(x, y) == pytest.approx(32 * 0.6302 - 32 * 31 * 0.21117, abs=0.1)


# --- factors


def test_factor_dependence_is_unbiased_cka():
    x = normal(60, 5)
    frame = pd.DataFrame(
        {
            "label": np.arange(60) % 3,
            "real": x[:, 0].numpy() ** 2,
            "name": ["a", "b"] * 30,
            "flag": x[:, 1].numpy() > 0,
            "constant": 1.0,
            "id": np.arange(60),
            "category": pd.Categorical(["u", "v", "w"] * 20),
        }
    )
    table = factor_dependence(x, frame).set_index("factor")
    assert table["kernel"].tolist() == ["Delta", "Gaussian", "Delta", "Delta", "Gaussian", "Delta", "Delta"]
    labels = {name: torch.as_tensor(pd.factorize(frame[name])[0]) for name in ("label", "name", "flag", "category")}
    for name, values in labels.items():
        assert table.loc[name, "cka"] == pytest.approx(float(cka(x, values, None, Delta())), rel=1e-6)
    real = torch.tensor(frame["real"].to_numpy())
    assert table.loc["real", "cka"] == pytest.approx(float(cka(x, real, Linear(), Gaussian())), rel=1e-9)
    assert table.loc["constant", "cka"] == table.loc["id", "cka"] == 0 and (table["n"] == 60).all()
    same = pd.DataFrame({"numbers": frame["real"].astype(object), "dates": pd.to_datetime(frame["real"], unit="s")})
    assert factor_dependence(x, same)["cka"].tolist() == pytest.approx([float(table.loc["real", "cka"])] * 2, rel=1e-6)


def test_factor_dependence_finds_the_encoded_factor():
    labels = np.random.default_rng(0).integers(0, 4, 3000)
    x = torch.eye(4)[labels] + 0.3 * normal(3000, 4, dtype=torch.float32)
    frame = pd.DataFrame({"in": labels, "out": np.random.default_rng(1).integers(0, 4, 3000)})
    table = factor_dependence(x, frame, max_rows=500).set_index("factor")
    assert table.loc["in", "cka"] > 0.5 and abs(table.loc["out", "cka"]) < 0.02 and (table["n"] == 500).all()
    assert table.equals(factor_dependence(x, frame, max_rows=500).set_index("factor"))


def test_numbers_as_text_are_neither_numbers_nor_labels():
    x, text = normal(60, 5), pd.Series([f"{v:.3f}" for v in normal(60, 1)[:, 0]])
    for call in (lambda v: factor_dependence(x, v), lambda v: hsic_matrix(x, v)):
        with pytest.raises(ValueError, match=r"\['v'\] holds numbers as text, '[-.0-9]+'.*: convert them"):
            call(pd.DataFrame({"v": text}))
        with pytest.raises(ValueError, match=r"numbers as text, '[-.0-9]+', ..., and '\?': convert them"):
            call(pd.DataFrame({"v": ["?", *text[1:]]}))
        with pytest.raises(ValueError, match=r"numbers as text, '[-,0-9]+'"):
            call(pd.DataFrame({"v": text.str.replace(".", ",")}))
        call(pd.DataFrame({"v": text.astype(float), "category": text.astype("category"), "code": ["01", "1"] * 30}))


def test_factors_are_converted_or_refused_with_the_count():
    x = normal(60, 5)
    value = x[:, 0].numpy().round(3)
    days = pd.Timestamp("2020-01-01") + pd.to_timedelta(value, unit="D")
    expected = factor_dependence(x, pd.DataFrame({"v": value}))["cka"][0]
    same = {"decimal": [Decimal(str(v)) for v in value], "zone": days.tz_localize("Asia/Tokyo"), "date": days}
    table = diagnose(x, factors=pd.DataFrame(same)).set_index("diagnostic")["value"]
    for name in same:
        assert table[f"cka_{name}"] == pytest.approx(expected, rel=1e-5), name
    holes = {"object": pd.Series(["a", None] * 30), "floats": [np.nan, *value[1:]], "day": days.where(days != days[3])}
    for name, column in holes.items():
        missing = pd.isna(pd.Series(column)).sum()
        with pytest.raises(ValueError, match=rf"factors\['{name}'\] holds {missing} missing values .* in 60 rows"):
            diagnose(x, factors=pd.DataFrame({name: column}))


# --- verdicts

N, D = 600, 16
Z = normal(N, D)
NEAR = Z + 0.2 * normal(N, D, 1)
CASES = {
    # name: (z_a, z_b), the overall verdict, and the rows that give it
    "isotropic": ((Z, NEAR), "healthy", set()),
    "one view": ((Z, None), "healthy", set()),
    "offset mean 50": ((Z.float() + 50, NEAR.float() + 50), "healthy", set()),
    "few rows": ((normal(40, 200), normal(40, 200) + normal(40, 200, 1)), "healthy", set()),
    "few rows, unrelated": ((normal(40, 200), normal(40, 200, 1)), "unrelated views", {"mean_diagonal"}),
    "unrelated views": ((Z, normal(N, D, 2)), "unrelated views", {"mean_diagonal"}),
    "rows in another order": ((Z, NEAR.roll(1, 0)), "unrelated views", {"mean_diagonal"}),
    "faint agreement": ((Z, Z + 7 * normal(N, D, 1)), "healthy", set()),  # correlation 0.14
    "one dead feature": ((torch.cat([Z, Z[:, :1] * 0 + 0.1], 1), None), "healthy", set()),
    "half dead": ((torch.cat([Z, Z * 0 + 0.1], 1), None), "dimensional collapse", {"dead_features"}),
    "duplicated": ((Z.repeat(1, 3), NEAR.repeat(1, 3)), "redundant", {"redundancy"}),
    "rank 3": ((Z[:, :3] @ normal(3, 64), None), "dimensional collapse", {"rank_above_noise", "redundancy"}),
    "one branch of rank 2": ((Z, Z[:, [0, 1] * 8]), "dimensional collapse", {"rank_above_noise_b", "redundancy"}),
    "simplex": ((simplex(N, D), simplex(N, D)), "healthy", set()),
    "gamed": (gamed(N, 32), "branch anti-alignment", {"feature_sum_covariance", "redundancy"}),
    "constant": (
        (torch.full((N, D), 0.1), NEAR.float()),
        "complete collapse",
        {"relative_spread", "dead_features", "rank_above_noise"},
    ),
    "zero": ((torch.zeros(N, D), None), "complete collapse", {"relative_spread", "dead_features", "rank_above_noise"}),
    "nearly constant": ((1e-5 * Z + 1, None), "complete collapse", {"relative_spread"}),
}


@pytest.mark.parametrize(("views", "verdict", "rows"), CASES.values(), ids=CASES)
def test_verdicts_on_known_failures(views, verdict, rows):
    frame = diagnose(*views)
    assert frame.attrs["verdict"] == verdict
    faults = frame[~frame["verdict"].isin(["healthy", "not judged"])]
    assert set(faults["diagnostic"]) == rows
    assert list(frame.columns) == ["diagnostic", "value", "verdict", "threshold", "meaning"]
    assert frame["diagnostic"].is_unique and (frame["threshold"] != "none").sum() == (
        frame["threshold"].str.contains("=").sum()
    )


# --- dimensional collapse, and the words of the verdict


def script():
    path = Path(__file__).parents[2] / "benchmarks" / "verdicts.py"
    spec = importlib.util.spec_from_file_location("verdicts", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rates_of_false_alarm_and_miss():
    verdicts = script()
    shapes = itertools.product((50, 200), (16, 128), (7, 8))
    rows = [(truth, verdicts.collapsed(z)) for n, d, seed in shapes for _, truth, z in verdicts.cases(n, d, seed)]
    table = pd.DataFrame(rows, columns=["truth", "found"]).groupby("truth")["found"].agg(found="sum", seeds="size")
    false_alarm, miss = verdicts.rates(table.reset_index())
    assert table.loc["collapsed", "seeds"] > 80 and table.loc["ordinary", "seeds"] > 130
    assert false_alarm <= 0.005 and miss <= 0.02


@pytest.mark.parametrize("rank", [1, 4, 8])
@pytest.mark.parametrize("noise", [0, 0.01, 0.3])
@pytest.mark.parametrize("mean", [0, 30])
def test_low_rank_under_noise_is_a_collapse(rank, noise, mean):
    z = normal(1000, rank) @ normal(rank, 128, 1) + noise * normal(1000, 128, 2) + mean
    frame = diagnose(z)
    assert frame.attrs["verdict"] == "dimensional collapse"
    assert frame.set_index("diagnostic")["value"]["rank_above_noise"] == pytest.approx(rank, rel=0.2)


def spectrum(alpha, n, d):
    rotation = torch.linalg.qr(normal(d, d, 5))[0]
    return normal(n, d) * torch.arange(1, d + 1) ** (-alpha / 2) @ rotation


DIGITS = torch.from_numpy(load_digits().data)
ORDINARY = {
    "pixels": DIGITS,
    "few pixels": DIGITS[:60],
    "pixels with a border": torch.nn.functional.pad(DIGITS.view(-1, 8, 8), (1, 1, 1, 0)).flatten(1),
    "power law 1": spectrum(1, 400, 256),
    "power law 1.5": spectrum(1.5, 400, 256),
    "fewer rows than features": spectrum(1, 60, 256),
    "large mean": spectrum(1, 400, 64) + 100,
    "white": normal(300, 64),
    "one direction of half the variance": normal(500, 64) + normal(500, 1, 3) @ normal(1, 64, 4),
    "rank of a quarter": normal(300, 16) @ normal(16, 64, 1) + 0.1 * normal(300, 64, 2),
    "two correlated features": normal(300, 1) + 0.5 * normal(300, 2, 1),
}


@pytest.mark.parametrize("z", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_features_are_not_called_collapsed(z):
    assert not set(diagnose(z)["verdict"]) & set(FAULTS)


@pytest.mark.parametrize("n, d", [(401, 100), (101, 100), (51, 500)])
def test_noise_edge_is_that_of_marchenko_and_pastur(n, d):
    few, many = sorted((n - 1, d))
    low, high = ((1 + sign * math.sqrt(few / many)) ** 2 for sign in (-1, 1))
    edge = sphere.noise_edge(torch.ones(few), n, d)  # in units of the median
    mass, _ = quad(lambda x: math.sqrt((high - x) * (x - low)) / (2 * math.pi * few / many * x), low, high / edge)
    assert mass == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_a_verdict_depend_on_what_the_features_are(kind):
    redundant, few = diagnose(Z.repeat(1, 3), kind=kind), diagnose(Z[:, :2] @ normal(2, 64), kind=kind)
    words = redundant.attrs["explanation"], few.attrs["explanation"]
    assert ("no fault" in words[0] or "usual" in words[0]) == (kind != "projections")
    assert ("raw data" in words[0]) == ("units" in words[1]) == (kind in ("unknown", "data"))
    half = diagnose(torch.cat([Z, Z * 0 + 0.1], 1), kind=kind)
    assert (half.attrs["verdict"] == "healthy") == (kind == "data"), "raw data may have constant columns"
    assert diagnose(Z * 0, kind=kind).attrs["verdict"] == "complete collapse"
    assert {name.split(" of ")[0] for name in EXPLANATIONS} == set(VERDICTS)


@pytest.mark.parametrize("views", [(Z, None), (Z, NEAR), (Z, Z[:, [0, 1] * 8]), (Z * 0, NEAR)])
def test_text_of_a_diagnosis_is_short(views):
    frame = diagnose(*views, kind="features")
    lines = str(frame).splitlines()
    assert lines[0] == f"Verdict: {frame.attrs['verdict']} (600 rows, 16 features, features)"
    assert len(lines) <= 14 and max(map(len, lines)) <= 100
    table = frame.set_index("diagnostic")
    numbers = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines if line.startswith("  ")}
    assert len(numbers) >= 5
    for name, (value, words) in numbers.items():
        verdict, _, bound = words.removesuffix(")").partition(" (healthy: ")
        assert [value, verdict] == [f"{table['value'][name]:.4g}", table["verdict"][name]]
        rule, _, rest = table["threshold"][name].replace("none", "").partition(", or")
        words = rule.split()
        assert bound == " ".join([*words[:1], *words[-1:]]) + (f", or{rest}" if rest else "")
    faults = frame.loc[frame["verdict"].isin(FAULTS), "diagnostic"]
    assert set(faults) <= set(numbers)
    assert str(frame.head(2)) == repr(frame.head(2)), "a selection is a plain table"


def test_every_row_without_a_verdict_says_why():
    frames = [
        diagnose(Z, NEAR, reference=Z, factors=pd.DataFrame({"a": np.arange(N) % 3})),
        diagnose(normal(4, 8), normal(4, 8)), diagnose(Z * 0, NEAR), diagnose(Z, kind="data"),
    ]  # fmt: skip
    for row in pd.concat(frames).itertuples():
        if row.verdict == "not judged":
            assert (
                "not judged" in row.meaning or "judged in the next row" in row.meaning or "not defined" in row.meaning
            )


def deviating():
    z = Z[:1].expand(N, D).clone()
    z[7] = Z[7]
    return z


@pytest.mark.parametrize(
    "z_a, z_b",
    [(deviating(), deviating()), ((Z[:200] - 2).clamp_min(0), (Z[:200] + 0.2 * normal(200, D, 3) - 2).clamp_min(0))],
)
def test_views_with_variance_in_few_rows_are_not_unrelated(z_a, z_b):
    row = diagnose(z_a, z_b).set_index("diagnostic").loc["mean_diagonal"]
    assert row["verdict"] == "healthy" and row["value"] > 2 * float(row["threshold"].split("=")[-1])


@pytest.mark.parametrize("n, d", [(30, 5), (12, 40)])
def test_bound_for_unrelated_views_is_the_deviation_over_permutations(n, d):
    z_a, z_b = normal(n, d), normal(n, d, 1) + normal(n, d)
    limit = float(diagnose(z_a, z_b).set_index("diagnostic").loc["mean_diagonal", "threshold"].split("=")[-1])
    generator = torch.Generator().manual_seed(0)
    orders = (torch.randperm(n, generator=generator) for _ in range(4000))
    values = torch.stack([cross_correlation(z_a, z_b[order]).diagonal().mean() for order in orders])
    assert limit == pytest.approx(3 * float(values.std()), rel=0.05)
    assert abs(values.mean()) < 4 * values.std() / 4000**0.5


@pytest.mark.parametrize("n, d", [(4, 2), (4, 8), (9, 1)])
def test_bound_above_1_gives_no_verdict(n, d):
    z = normal(n, d)
    assert diagnose(z, z.clone()).set_index("diagnostic").loc["mean_diagonal", "verdict"] == "not judged"


def test_values_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"z_b reaches 4\.\d+e\+20, and squares leave float32 above 1e\+15"):
        diagnose(Z.float(), 1e20 * NEAR.float())
    doubled = 1e7 * torch.cat([Z, Z], dim=1), 1e7 * torch.cat([NEAR, NEAR], dim=1)
    row = diagnose(*doubled).set_index("diagnostic").loc["lidar"]
    assert math.isnan(row["value"]) and row["verdict"] == "not judged"
    assert "delta = 0.0001 is rounding" in row["meaning"]
    for unit in (1e-12, 1e8):
        frame = diagnose(unit * Z.float(), unit * NEAR.float(), reference=unit * Z.float())
        assert frame.attrs["verdict"] == "healthy"
        assert frame.set_index("diagnostic").loc["cka_reference", "value"] == pytest.approx(1)


def test_bound_for_unrelated_views_has_its_level():
    # Few features, and correlated ones, so that the mean over features averages little out.
    mixed = normal(300 * 200, 4, 5) @ normal(4, 4, 6)
    views = zip(mixed.split(200), normal(300 * 200, 4, 7).split(200), strict=True)
    frames = [diagnose(z_a, z_b).set_index("diagnostic") for z_a, z_b in views]
    passed = sum(frame.loc["mean_diagonal", "verdict"] == "healthy" for frame in frames)
    assert passed <= 3  # one in 741 is beyond three standard errors: 0.4 of 300 are expected


def test_frame_holds_the_diagnostics():
    factors = pd.DataFrame({"group": np.arange(N) % 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_only = Z.numpy().copy()
        read_only.setflags(write=False)  # as a memory map is
        frame = diagnose(read_only, NEAR, reference=Z[:, :4], factors=factors).set_index("diagnostic")["value"]
    expected = {
        "rankme": rankme(Z),
        "rankme_b": rankme(NEAR),
        "uniformity": uniformity(Z),
        "alignment": alignment(Z, NEAR),
        "lidar": lidar((Z, NEAR)),
        "redundancy": redundancy(Z, NEAR),
        "dead_features": 0,
        "feature_sum_covariance": feature_sum_covariance(Z, NEAR),
        "cka_reference": float(cka(Z, Z[:, :4])),
        "feature_variance": float(Z.var(dim=0, correction=0).mean()),
        "cka_group": factor_dependence(Z, factors)["cka"][0],
        "mean_diagonal": float(cross_correlation(Z, NEAR).diagonal().mean()),
    }
    for name, value in expected.items():
        assert frame[name] == pytest.approx(value, rel=1e-9), name


def test_zero_rows_leave_sphere_measures_undefined():
    holed = Z.clone()
    holed[3] = 0
    frame = diagnose(holed, NEAR).set_index("diagnostic")
    assert frame.loc[["uniformity", "alignment"], "value"].isna().all()
    assert np.isfinite(frame.loc["uniformity_b", "value"])
    assert frame.loc["uniformity", "meaning"] == "not defined: 1 rows are 0"


@pytest.mark.parametrize(
    ("call", "error", "quoted"),
    [
        (lambda: diagnose(Z, NEAR[:9]), ValueError, r"\(600, 16\) and \(9, 16\)"),
        (lambda: diagnose(Z, NEAR[:, :9]), ValueError, r"\(600, 9\)"),
        (lambda: diagnose(Z[:1]), ValueError, r"4 rows, got shape \(1, 16\)"),
        (lambda: diagnose(Z * np.nan), ValueError, "z_a holds 9600 values that are NaN"),
        (lambda: diagnose(Z, Z / 0), ValueError, "z_b holds 9600"),
        (lambda: diagnose(Z.long()), TypeError, "int64"),
        (lambda: diagnose(Z, kind="pixels"), ValueError, "kind must be one of 'unknown', .*, got 'pixels'"),
        (lambda: diagnose(Z.to_sparse()), TypeError, "z_a .*sparse"),
        (lambda: diagnose(Z.numpy() * 1j), TypeError, "z_a .*complex"),
        (lambda: diagnose(Z, np.ma.masked_array(Z, Z > 3)), ValueError, "z_b holds .* missing"),
        (lambda: uniformity(Z, t="2"), ValueError, "got '2'"),
        (lambda: uniformity(Z, max_rows=2.5), TypeError, "got 2.5"),
        (lambda: uniformity(Z, seed=None), TypeError, "got None"),
        (lambda: alignment(Z, Z, power=np.nan), ValueError, "got nan"),
        (lambda: lidar((Z, Z), delta="small"), ValueError, "got 'small'"),
        (lambda: alpha_req(Z, first=1.5), TypeError, "got 1.5"),
        (lambda: factor_dependence(Z, pd.DataFrame({"a": [1] * N}), max_rows=None), TypeError, "got None"),
        (lambda: diagnose(Z, reference=Z[:5]), ValueError, "got 600 and 5"),
        (lambda: diagnose(Z, factors=pd.DataFrame({"a": [1]})), ValueError, "got 600, 1"),
        (lambda: factor_dependence(Z, {"a": 1}), TypeError, "dict"),
        (lambda: factor_dependence(Z, pd.DataFrame({"a": [np.nan] * N})), ValueError, r"factors\['a'\] holds 600"),
        (lambda: alignment(Z, Z[:5]), ValueError, r"\(5, 16\)"),
        (lambda: alignment(Z, Z * 0), ValueError, "z_b has 600 zero rows"),
        (lambda: alignment(Z, Z, power=0), ValueError, "got 0"),
        (lambda: uniformity(Z[:1]), ValueError, r"\(1, 16\)"),
        (lambda: uniformity(Z, t=-1), ValueError, "got -1"),
        (lambda: redundancy(Z[:1]), ValueError, r"\(1, 16\)"),
    ],
)
def test_bad_diagnostics_input_is_refused(call, error, quoted):
    with pytest.raises(error, match=quoted):
        call()


@pytest.mark.parametrize("n, d", [(1000, 2), (1000, 4), (5, 64)])
def test_one_direction_is_a_collapse_for_any_number_of_features(n, d):
    frame = diagnose(normal(n, 1) @ normal(1, d, 1))
    assert frame.attrs["verdict"] == "dimensional collapse"
    assert frame.set_index("diagnostic")["value"]["rankme"] == pytest.approx(1, abs=1e-6)
    assert diagnose(normal(1000, 2)).attrs["verdict"] == "healthy"


def test_scale_whose_squares_leave_float32_is_refused():
    z = normal(100, 6, dtype=torch.float32)
    frames = [diagnose(unit * z).set_index("diagnostic") for unit in (1.0, 1e-15, 1e12)]
    for frame in frames[1:]:
        assert frame["verdict"].drop("relative_spread").equals(frames[0]["verdict"].drop("relative_spread"))
        np.testing.assert_allclose(frame["value"]["redundancy"], frames[0]["value"]["redundancy"], rtol=1e-4)
    with pytest.raises(ValueError, match=r"largest standard deviation of z_b is 1\.\d+e-30.*rescale it"):
        diagnose(z, 1e-30 * z)
    assert diagnose(torch.cat([z, 1e-30 * z[:, :1]], 1)).attrs["verdict"] == "healthy", "one such feature is no unit"


def test_one_feature_can_be_healthy():
    assert diagnose(normal(200, 1)).attrs["verdict"] == "healthy"


@pytest.mark.parametrize("dead", [0, 15, 38])
def test_constant_features_are_left_out_of_the_means_and_bounds_of_c(dead):
    z = np.random.default_rng(0).normal(size=(100, 40))
    z[:, :dead] = 3.0
    for a, b in ((z, z), (z, np.where(np.arange(40) < dead, np.random.default_rng(1).normal(size=z.shape), z))):
        rows = diagnose(a, b).set_index("diagnostic")
        alone = diagnose(z[:, dead:], z[:, dead:]).set_index("diagnostic")
        assert rows["value"]["mean_diagonal"] == pytest.approx(1)
        assert a is not b or rows["threshold"]["mean_diagonal"] == alone["threshold"]["mean_diagonal"]
        assert a is not b or rows["threshold"]["redundancy"] == alone["threshold"]["redundancy"]


def test_few_rows_or_features_are_called_few_and_show_collapse_to_one_direction():
    assert "5 rows and 64 features are few" in diagnose(normal(5, 64)).attrs["explanation"]
    assert "few" not in diagnose(normal(200, 8)).attrs["explanation"]
    line = diagnose(normal(200, 1) @ normal(1, 5, 1))
    assert line.attrs["verdict"] == "dimensional collapse" and "are few" not in line.attrs["explanation"]
    plane = diagnose(normal(200, 2) @ normal(2, 7, 1))
    assert plane.attrs["verdict"] != "dimensional collapse"
