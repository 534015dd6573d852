"""Kernels against their formulas, the median rule against SciPy."""

import operator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from hsic_lab.kernels import (
    MEDIAN_ROWS,
    Delta,
    DistanceInduced,
    Gaussian,
    InverseMultiquadric,
    Laplace,
    Linear,
    Polynomial,
    median_distance,
    middle,
    named,
    squared_distances,
)

S = 1.3
FORMULAS = {
    Linear(): lambda a, b: a @ b,
    Gaussian(S): lambda a, b: np.exp(-((a - b) ** 2).sum() / (2 * S**2)),
    Laplace(S): lambda a, b: np.exp(-np.abs(a - b).sum() / S),
    InverseMultiquadric(S): lambda a, b: S / (S**2 + ((a - b) ** 2).sum()) ** 0.5,
    Polynomial(3, 0.5): lambda a, b: (a @ b + 0.5) ** 3,
    Delta(): lambda a, b: float((a == b).all()),
    DistanceInduced(): lambda a, b: (np.linalg.norm(a) + np.linalg.norm(b) - np.linalg.norm(a - b)) / 2,
    Linear() + Gaussian(S): lambda a, b: a @ b + np.exp(-((a - b) ** 2).sum() / (2 * S**2)),
    Laplace(S) * Polynomial(1): lambda a, b: np.exp(-np.abs(a - b).sum() / S) * (a @ b + 1),
}
SCALED = [Gaussian, Laplace, InverseMultiquadric]


def sample(n, p, seed=0):
    return torch.randn(n, p, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def each(kernels):
    return pytest.mark.parametrize("kernel", kernels, ids=repr)


@each(FORMULAS)
def test_gram_holds_the_kernel_of_every_pair(kernel):
    x, y = sample(6, 3), sample(4, 3, seed=1)
    formula = FORMULAS[kernel]
    for other, gram in ((y, kernel(x, y)), (x, kernel(x))):
        expected = [[formula(a, b) for b in other.numpy()] for a in x.numpy()]
        np.testing.assert_allclose(gram, expected, rtol=1e-12, atol=1e-14)


@each(FORMULAS)
def test_gram_is_symmetric_and_positive_semidefinite(kernel):
    gram = kernel(sample(12, 3))
    assert torch.equal(gram, gram.T)
    assert torch.linalg.eigvalsh(gram).min() > -1e-12


@each([kernel for kernel in FORMULAS if kernel != Delta()])
def test_gradient_matches_finite_differences(kernel):
    x, y = sample(5, 2).requires_grad_(), sample(3, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(kernel, (x,)) and torch.autograd.gradcheck(kernel, (x, y))


@pytest.mark.parametrize("kind", SCALED)
def test_gradient_of_a_learnable_bandwidth_matches_finite_differences(kind):
    s = torch.tensor(S, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: kind(s)(sample(5, 2)), (s,))


@pytest.mark.parametrize(("norm", "metric"), [(1, "cityblock"), (2, "euclidean")])
@pytest.mark.parametrize("n", [2, 3, 10, 11])
def test_median_is_over_pairs_of_different_rows(n, norm, metric):
    x = sample(n, 3)
    expected = np.sort(pdist(x, metric))[(n * (n - 1) // 2 - 1) // 2]
    assert median_distance(x, norm) == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "norm"), list(zip(SCALED, (2, 1, 2), strict=True)))
def test_median_rule_uses_the_distance_of_the_kernel(kind, norm):
    x, y = sample(9, 2), sample(4, 2, 1)
    assert torch.equal(kind()(x), kind(median_distance(x, norm))(x))
    assert torch.equal(kind()(x, y), kind(median_distance(torch.cat([x, y]), norm))(x, y))


def test_median_of_many_rows_uses_a_seeded_draw():
    x = sample(3 * MEDIAN_ROWS, 2).sort(dim=0).values  # the first rows are smaller than the others
    state = torch.random.get_rng_state()
    median = median_distance(x)
    assert median == median_distance(x) and torch.equal(torch.random.get_rng_state(), state)
    assert median == pytest.approx(np.median(pdist(x)), rel=0.05)


@pytest.mark.parametrize("kind", SCALED)
@given(scale=st.floats(1e-6, 1e6), offset=st.floats(-100, 100))
@settings(deadline=None)
def test_median_rule_scales_with_the_unit_and_ignores_the_origin(kind, scale, offset):
    x = sample(20, 2)
    gram = kind()(x)
    torch.testing.assert_close(kind()(scale * (x + offset)), gram, rtol=1e-9, atol=1e-9)


def test_median_of_mostly_equal_rows_uses_the_positive_distances():
    x = torch.tensor([0.0] * 8 + [3.0, 4.0])
    assert median_distance(x) == 3.0
    assert median_distance(torch.full((5, 2), 7.0)) == 1.0


def test_median_rule_has_no_gradient():
    x = sample(7, 2).requires_grad_()
    fixed = Gaussian(median_distance(x))
    expected = torch.autograd.grad(fixed(x)[0].sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(Gaussian()(x)[0].sum(), x)[0], expected)


# --- accuracy of distances, whatever the scales of the rows


def clusters(n, p, count, distance, spread=1.0):
    centers = distance * sample(count, p, seed=2)
    return spread * sample(n, p) + centers[torch.arange(n) % count]


def outlier(n, p, value):
    x = sample(n, p)
    x[0] = value
    return x


SCALES = {
    "normal": sample,
    "log-normal": lambda n, p: (5 * sample(n, p)).exp(),
    "offset 1e6": lambda n, p: sample(n, p) + 1e6,
    "offset 1e8": lambda n, p: sample(n, p) + 1e8,
    "one row of 1e5": lambda n, p: outlier(n, p, 1e5),
    "one row of 1e10": lambda n, p: outlier(n, p, 1e10),
    "one row whose square overflows float32": lambda n, p: outlier(n, p, 1e25),
    "rows of every scale": lambda n, p: sample(n, p) * torch.logspace(-6, 6, n, dtype=torch.float64)[:, None],
    "two clusters": lambda n, p: clusters(n, p, 2, 1e5),
    "nine clusters": lambda n, p: clusters(n, p, 9, 1e5, 0.01),
    "clusters of clusters": lambda n, p: clusters(n, p, 4, 1e6, 0) + clusters(n, p, 3, 1e3, 0.01),
    "equal rows": lambda n, p: clusters(n, p, 3, 1e5, 0),
    "integers": lambda n, p: (2 * sample(n, p)).round(),
}
every_scale = pytest.mark.parametrize("scale", SCALES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def relative_bound(dtype):
    return 8 * torch.finfo(dtype).eps ** 0.75


def exact_squares(x, y):
    """Squared distances from differences in extended precision, infinite beyond the range of the dtype."""
    columns = zip(x.T.numpy().astype(np.longdouble), y.T.numpy().astype(np.longdouble), strict=True)
    squares = sum((a[:, None] - b) ** 2 for a, b in columns)
    return np.where(squares > torch.finfo(x.dtype).max, np.inf, squares)


@every_dtype
@every_scale
@pytest.mark.parametrize(("n", "p"), [(9, 3), (300, 1), (300, 2), (300, 40), (600, 3)])
def test_every_squared_distance_is_accurate(n, p, scale, dtype):
    x = SCALES[scale](n, p).to(dtype)
    y = x[torch.arange(0, n, 3)] + (x[: len(range(0, n, 3))] - x[0]) * 1e-3
    for got, exact in (
        (squared_distances(x), exact_squares(x, x)),
        (squared_distances(x, y), exact_squares(x, y)),
        (squared_distances(y, x), exact_squares(y, x)),
    ):
        np.testing.assert_allclose(got.numpy().astype(np.longdouble), exact, rtol=relative_bound(dtype), atol=0)
    assert (squared_distances(x).diagonal() == 0).all()


@every_dtype
@pytest.mark.parametrize("exponents", [(0, 0), (0, 8), (-3, 6), (-8, 0), (-8, 8)])
@given(seed=st.integers(0, 10_000), p=st.integers(1, 20), count=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_distances_within_and_between_clusters_are_accurate(exponents, dtype, seed, p, count):
    rng = np.random.default_rng(seed)
    spread, distance = 10.0 ** np.array(exponents)
    x = spread * rng.standard_normal((200, p)) + distance * rng.standard_normal((count, p))[np.arange(200) % count]
    x = torch.from_numpy(x).to(dtype)
    got = squared_distances(x).numpy().astype(np.longdouble)
    np.testing.assert_allclose(got, exact_squares(x, x), rtol=relative_bound(dtype), atol=0)


@every_dtype
@every_scale
@pytest.mark.parametrize("kind", SCALED)
def test_kernels_and_their_median_rule_are_accurate(kind, scale, dtype):
    x = SCALES[scale](150, 3).to(dtype)
    squares = exact_squares(x, x)
    rows = x.numpy().astype(np.longdouble)
    distances = sum(abs(c[:, None] - c) for c in rows.T) if kind is Laplace else np.sqrt(squares)
    pairs = np.sort(distances[np.triu_indices(150, 1)])
    s = pairs[(len(pairs) - 1) // 2]
    if s == 0:
        s = np.quantile(pairs[pairs > 0], 0.5, method="inverted_cdf") if pairs.any() else 1.0
    if scale != "one row whose square overflows float32" or dtype == torch.float64:
        assert kind().fit(x).bandwidth == pytest.approx(float(s), rel=4 * torch.finfo(dtype).eps)
    for bandwidth in (float(s), float(np.quantile(pairs, 0.05)) or 1e-3):
        formulas = {Gaussian: np.exp(-squares / (2 * bandwidth**2)), Laplace: np.exp(-distances / bandwidth)}
        expected = formulas.get(kind, 1 / np.sqrt(1 + squares / bandwidth**2))
        np.testing.assert_allclose(kind(bandwidth)(x), expected.astype(float), rtol=0, atol=relative_bound(dtype))


@every_dtype
@pytest.mark.parametrize("scale", [scale for scale in SCALES if "overflows" not in scale])
def test_gradient_of_near_pairs_is_accurate(scale, dtype):
    x = SCALES[scale](120, 3).to(dtype).requires_grad_()
    differences = (x[:, None] - x).detach().double()
    nearest = differences.square().sum(dim=2)
    weights = (nearest <= nearest.quantile(0.1)).to(dtype) / nearest.clamp_min(1e-300).sqrt().to(dtype)
    weights[nearest == 0] = 1
    exact = 2 * (weights.double()[:, :, None] * differences)
    (got,) = torch.autograd.grad((weights * squared_distances(x)).sum(), x)
    size = 2 * exact.norm(dim=2).sum(dim=1)
    assert ((got - 2 * exact.sum(dim=1)).norm(dim=1) <= relative_bound(dtype) * size).all()


@pytest.mark.parametrize("p", [1, 3, 40])
def test_equal_rows_have_distance_and_gradient_zero(p):
    x = (sample(50, p).float() + 1e4).repeat(8, 1).requires_grad_()
    distances = squared_distances(x)
    equal = torch.arange(400)[:, None] % 50 == torch.arange(400) % 50
    assert (distances[equal] == 0).all() and (distances[~equal] > 0).all()
    assert (torch.autograd.grad(distances[equal].sum(), x)[0] == 0).all()


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_distances_of_no_rows_are_empty(n, m):
    assert squared_distances(torch.zeros(n, 2), torch.zeros(m, 2)).shape == (n, m)


def differences(x, y):
    return (x[:, None] - y).square().sum(dim=2)


def compiled(f, x, y):
    torch._dynamo.reset()
    return torch.compile(f, fullgraph=True, backend="aot_eager")(x, y)


@pytest.mark.parametrize("entries", [1 << 18, 12])
@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x, y: torch.func.grad(f)(x, y),
        lambda f, x, y: torch.func.jacrev(torch.func.grad(f))(x, y),
        lambda f, x, y: torch.func.jvp(f, (x, y), (y[:, :1].sum() * x, x[:5]))[1],
        lambda f, x, y: torch.func.hessian(f, argnums=(0, 1))(x, y)[0][1],
        lambda f, x, y: torch.func.vmap(f)(torch.stack([x, 2 * x]), torch.stack([y, y])),
        lambda f, x, y: torch.func.vmap(f, (None, 0))(x, torch.stack([y, y])),
        lambda f, x, y: torch.func.vmap(torch.func.grad(f))(torch.stack([x, 2 * x]), torch.stack([y, y])),
        compiled,
    ],
)
def test_transforms_of_torch_apply_to_distances(transform, entries, monkeypatch):
    monkeypatch.setattr("hsic_lab.kernels.TILE_ENTRIES", entries)
    x, y = sample(6, 3), sample(5, 3, seed=1)
    got, expected = (
        transform(lambda x, y, d=d: torch.exp(-d(x, y)).sum(), x, y) for d in (squared_distances, differences)
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    x, y = x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradgradcheck(squared_distances, (x, y)) and torch.autograd.gradcheck(squared_distances, (x,))


def test_compiled_distances_of_equal_rows_are_zero():
    x = sample(20, 4).repeat(2, 1) + 3
    distances = compiled(lambda x, y: squared_distances(x, y), x, x)
    assert (distances.diagonal() == 0).all() and (distances.diagonal(20) == 0).all()


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("bandwidth", [0, -1.0, float("nan"), "mean", torch.tensor(-2.0)])
def test_bandwidth_must_be_positive(kind, bandwidth):
    with pytest.raises(ValueError, match="bandwidth"):
        kind(bandwidth)


@pytest.mark.parametrize("arguments", [(0,), (1.5,), (2, -1.0)])
def test_polynomial_parameters_must_give_a_positive_definite_kernel(arguments):
    with pytest.raises((ValueError, TypeError), match="got"):
        Polynomial(*arguments)


def test_named_returns_the_kernel_of_a_name():
    names = {"linear": Linear(), "gaussian": Gaussian(), "laplace": Laplace(), "imq": InverseMultiquadric()}
    assert {name: named(name) for name in names} == names
    with pytest.raises(ValueError, match="kernel must be one of 'linear', 'gaussian', 'laplace', 'imq', got 'rbf'"):
        named("rbf")


def test_delta_accepts_labels():
    labels = torch.tensor([[0, 1], [0, 2], [0, 1]])
    assert Delta()(labels).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert Delta()(labels[:, 1] == 1, torch.tensor([True])).tolist() == [[1], [0], [1]]
    assert torch.equal((Delta() + Delta() * Delta())(labels), 2 * Delta()(labels))
    with pytest.raises(ValueError, match="shape"):
        Delta()(labels[None])


@each([kernel for kernel in FORMULAS if kernel != Delta()])
def test_bad_samples_are_rejected(kernel):
    x = sample(5, 3)
    with pytest.raises(ValueError, match="3 and 2"):
        kernel(x, sample(5, 2))
    with pytest.raises(TypeError, match=r"torch\.int64"):
        kernel(torch.arange(5))
    with pytest.raises(ValueError, match="NaN"):
        kernel(torch.full((5, 1), torch.nan))
    with pytest.raises(ValueError, match="at least 2"):
        median_distance(x[:1])
    with pytest.raises(ValueError, match="norm must be an integer of at least 1 and at most 2, got 3"):
        median_distance(x, norm=3)
    for combine, what in ((operator.mul, "factor"), (operator.add, "summand")):
        with pytest.raises(TypeError, match=f"a {what} must be of type Kernel, got float 0.5"):
            combine(kernel, 0.5)


@each(FORMULAS)
def test_a_vector_is_one_column_and_autocast_changes_nothing(kernel):
    x = sample(9, 1).float()
    assert torch.equal(kernel(x[:, 0]), kernel(x))
    with torch.autocast("cpu", torch.bfloat16):
        under = kernel(x)
    assert under.dtype == torch.float32 and torch.equal(under, kernel(x))
    assert kernel(x.half()).dtype == torch.float32


@pytest.mark.parametrize("kernel", [Linear(), Gaussian(), Laplace(), Polynomial(), InverseMultiquadric()], ids=repr)
def test_narrower_dtype_is_raised_to_the_wider(kernel):
    x, y = torch.randn(5, 3), torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(kernel(x, y), kernel(x.double(), y))
    torch.testing.assert_close(kernel(y, x), kernel(y, x.double()))


@pytest.mark.parametrize("n", [1, 2, 5, 64, 130, 333])
def test_linear_gram_is_accurate_for_all_numbers_of_rows(n):
    x = torch.randn(n, 7, generator=torch.Generator().manual_seed(n))
    gram = Linear()(x)
    torch.testing.assert_close(gram, gram.T)
    torch.testing.assert_close(gram.double(), x.double() @ x.double().T, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("n", [1, 3, 4, 27, 100])
def test_origin_is_among_most_rows(n):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(n))
    x[: n // 5] += 1e6
    assert (middle(x) <= x[n // 5 :].amax(dim=0)).all() and (middle(x) >= x[n // 5 :].amin(dim=0)).all()


def test_finite_values_whose_sum_overflows_are_accepted():
    largest = torch.full((4, 2), torch.finfo(torch.float32).max)
    assert torch.equal(Linear().samples(largest, "x"), largest)
    with pytest.raises(ValueError, match="x holds 2 values that are NaN or infinite"):
        Linear().samples(torch.tensor([[torch.inf], [-torch.inf], [0.0]]), "x")


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize(
    ("dtype", "outlier"),
    [*((torch.float32, x) for x in (1e22, 9.97e36, -3.4e38)), *((torch.float64, x) for x in (1e200, -1.797e308))],
)
def test_one_extreme_row_does_not_move_the_median(kind, dtype, outlier):
    x = torch.randn(60, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    near, far = x.clone(), x.clone()
    near[0], far[0] = 1e6, outlier
    assert kind().fit(far).bandwidth == kind().fit(near).bandwidth < 4
    torch.testing.assert_close(kind()(far)[1:, 1:], kind()(near)[1:, 1:], rtol=1e-6, atol=0)
    small = torch.nn.Parameter(torch.tensor(1e-7, dtype=dtype))
    assert kind(small)(far).isfinite().all() and kind(1e-7)(far).isfinite().all()


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("unit", [2.0**-90, 2.0**-60, 2.0**60, 2.0**123])
def test_bandwidths_of_any_unit_are_exact(kind, unit, learnable):
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    s = torch.nn.Parameter(torch.tensor(1.5 * unit)) if learnable else 1.5 * unit
    torch.testing.assert_close(kind(s)(unit * x), kind(1.5)(x), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("moved", [-0.5, 0.0, float("nan"), float("inf")])
def test_a_learnable_bandwidth_that_an_optimizer_moved_out_of_range_is_refused(kind, moved):
    kernel = kind(torch.nn.Parameter(torch.tensor(1.0)))
    kernel.bandwidth.data.fill_(moved)
    with pytest.raises(ValueError, match=f"bandwidth must be positive and finite, got {moved}"):
        kernel(sample(5, 2))
