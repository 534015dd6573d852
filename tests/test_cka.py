"""CKA of samples, batches and streams against NumPy, and the properties stated by Kornblith et al. (2019)."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsic_lab.cka import MinibatchCKA, StreamingLinearCKA, cka, u_center
from hsic_lab.compare import compare_models
from hsic_lab.hsic import StreamingLinearHSIC, hsic
from hsic_lab.kernels import Delta, DistanceInduced, Gaussian, InverseMultiquadric, Kernel, Linear, Polynomial

ESTIMATORS = ("biased", "unbiased")
KERNELS = {"linear": Linear(), "gaussian": Gaussian(3.0), "median": Gaussian(), "distance": DistanceInduced()}


def samples(n=30, p=5, q=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(n, k, generator=generator, dtype=dtype) for k in (p, q))
    y = noise
    y[:, : min(p, q)] += x[:, : min(p, q)] ** 2 + x[:, : min(p, q)]
    return x, y


def orthogonal(p, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(p, p, generator=generator, dtype=torch.float64)).Q


# --- oracles in NumPy, which share no code with the package


def numpy_gram(x, kernel):
    if kernel == "linear":
        return x @ x.T
    distances = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    if kernel == "distance":
        return -distances / 2
    pairs = np.sort(distances[np.triu_indices(len(x), 1)])
    scale = 3.0 if kernel == "gaussian" else pairs[(len(pairs) - 1) // 2]
    return np.exp(-(distances**2) / (2 * scale**2))


def numpy_hsic(k, l, estimator):
    n = len(k)
    if estimator == "biased":
        h = np.eye(n) - 1 / n
        return np.trace(k @ h @ l @ h) / n**2
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    one = np.ones(n)
    middle = one @ k @ one * (one @ l @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ l) + middle - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3))


def numpy_cka(x, y, kernel, estimator):
    k, l = numpy_gram(x.numpy(), kernel), numpy_gram(y.numpy(), kernel)
    self_hsic = numpy_hsic(k, k, estimator) * numpy_hsic(l, l, estimator)
    return numpy_hsic(k, l, estimator) / np.sqrt(self_hsic)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", [(5, 3, 2), (30, 5, 7), (12, 40, 33)])
def test_cka_matches_numpy(kernel, estimator, shape):
    x, y = samples(*shape)
    value = cka(x, y, KERNELS[kernel], KERNELS[kernel], estimator)
    assert value.shape == () and value.dtype == torch.float64
    assert float(value) == pytest.approx(numpy_cka(x, y, kernel, estimator), rel=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_cka_with_labels_equals_cka_with_their_one_hot_code(estimator):
    x, _ = samples(12, 3, 2)
    labels = torch.arange(12) % 3
    one_hot = torch.nn.functional.one_hot(labels).double()
    expected = cka(x, one_hot, estimator=estimator)
    torch.testing.assert_close(cka(x, labels, kernel_y=Delta(), estimator=estimator), expected)


def test_biased_linear_cka_equals_the_feature_space_form():
    x, y = samples()
    a, b = x - x.mean(0), y - y.mean(0)
    expected = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    for route in ("auto", "primal", "dual"):
        torch.testing.assert_close(cka(x, y, estimator="biased", route=route), expected)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", [(30, 5, 7), (12, 40, 33)])
def test_feature_space_equals_gram_form(estimator, shape):
    x, y = samples(*shape)
    torch.testing.assert_close(cka(x, y, None, None, estimator, "primal"), cka(x, y, None, None, estimator, "dual"))


def test_unbiased_cka_is_the_cosine_of_u_centered_grams():
    x, y = samples()
    a, b = u_center(x @ x.T), u_center(y @ y.T)
    torch.testing.assert_close((a * b).sum() / (30 * 27), hsic(x, y, estimator="unbiased"))
    torch.testing.assert_close((a * b).sum() / (a.norm() * b.norm()), cka(x, y))
    torch.testing.assert_close(a.sum(0), torch.zeros(30, dtype=a.dtype), atol=1e-10, rtol=0)


# --- properties


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_cka_of_equal_samples_is_1_and_cka_is_symmetric(kernel, estimator):
    x, y = samples()
    k = KERNELS[kernel]
    assert float(cka(x, x, k, k, estimator)) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(cka(x, y, k, k, estimator), cka(y, x, k, k, estimator))


@pytest.mark.parametrize("kernel", ["linear", "median", "distance"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_cka_ignores_rotations_shifts_and_scale_but_not_other_linear_maps(kernel, estimator):
    x, y = samples()
    k = KERNELS[kernel]
    value = cka(x, y, k, k, estimator)
    for other in (x @ orthogonal(5), x + 100, x * 1e-6, x * 1e6, -x):
        torch.testing.assert_close(cka(other, y, k, k, estimator), value, rtol=1e-7, atol=1e-9)
    stretched = x * torch.tensor([10.0, 1, 1, 1, 0.1], dtype=x.dtype)
    assert abs(cka(stretched, y, k, k, estimator) - value) > 0.02


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_float32_is_accurate_for_small_and_large_units(scale):
    x, y = samples(dtype=torch.float32)
    torch.testing.assert_close(cka(x * scale, y * scale), cka(x, y), rtol=1e-4, atol=1e-5)


def test_independent_samples_have_unbiased_cka_near_0_and_large_biased_cka():
    n, p, draws = 32, 64, 200
    generator = torch.Generator().manual_seed(0)
    values = {estimator: [] for estimator in ESTIMATORS}
    for _ in range(draws):
        x, y = torch.randn(2, n, p, generator=generator, dtype=torch.float64)
        for estimator in ESTIMATORS:
            values[estimator].append(float(cka(x, y, estimator=estimator)))
    unbiased, biased = np.array(values["unbiased"]), np.array(values["biased"])
    assert abs(unbiased.mean()) < 4 * unbiased.std(ddof=1) / np.sqrt(draws) and unbiased.std() < 0.1
    assert 0.3 < (unbiased < 0).mean() < 0.7
    assert biased.min() > 0.5


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["linear", "gaussian", "distance"])
def test_gradient_matches_finite_differences(kernel, estimator):
    x, y = (z.requires_grad_() for z in samples(6, 3, 2))
    k = KERNELS[kernel]
    assert torch.autograd.gradcheck(lambda a, b: cka(a, b, k, k, estimator), (x, y))


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 20), st.integers(1, 10), st.integers(1, 10), st.integers(0, 999))
def test_cka_is_in_its_range(n, p, q, seed):
    x, y = samples(n, p, q, seed)
    assert -1 - 1e-6 <= float(cka(x, y)) <= 1 + 1e-6
    assert -1e-9 <= float(cka(x, y, estimator="biased")) <= 1 + 1e-9


@pytest.mark.parametrize("n, p, products", [(64, 40, 2), (64, 20, 3)])  # two Grams, or three covariance matrices
def test_each_matrix_is_computed_once(n, p, products, monkeypatch):
    x, y = samples(n, p, p, dtype=torch.float32)
    exact, calls = cka(x.double(), y.double()), []
    for owner, name in ((Linear, "gram"), (sys.modules["hsic_lab.cka"], "row_product")):
        compute = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *samples, compute=compute: calls.append(0) or compute(*samples))
    torch.testing.assert_close(cka(x, y).double(), exact, rtol=1e-6, atol=1e-7)
    assert len(calls) == products


# --- where CKA is not defined


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e5])
def test_error_names_a_constant_sample(kernel, estimator, constant):
    _, y = samples()
    flat, k = torch.full((30, 3), constant, dtype=torch.float32), KERNELS[kernel]
    with pytest.raises(ValueError, match="x is constant: all 30 rows"):
        cka(flat, y, k, k, estimator)
    with pytest.raises(ValueError, match="y is constant"):
        cka(y, flat, k, k, estimator)


def test_error_quotes_hsic_that_is_not_positive():
    x, y = samples()
    with pytest.raises(ValueError, match=r"HSIC\(y, y\) is 0, not positive"):
        cka(x, y, None, Gaussian(1e-6))
    with pytest.raises(ValueError, match=r"Polynomial\(degree=3, offset=1.0\).*leaves the range of torch.float64"):
        cka(x * 1e60, y, Polynomial(3))
    wide = cka(x.float() * 1e15, y.float(), Polynomial(3))
    assert wide.item() == pytest.approx(
        cka(x.float().double() * 1e15, y.float().double(), Polynomial(3)).item(), rel=1e-5
    )


@pytest.mark.parametrize("route", ["dual", "tiled"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_units_of_float32_do_not_change_cka_on_any_route(route, estimator):
    x, y = (z.float() for z in samples())
    for unit in (1.0, 1e4, 1e15):
        exact = cka((unit * x).double(), y.double(), Polynomial(3), Gaussian(2.0), estimator, "dual")
        got = cka(unit * x, y, Polynomial(3), Gaussian(2.0), estimator, route)
        assert got.item() == pytest.approx(exact.item(), rel=1e-4) and got.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [5, 50, 64, 100, 333])
def test_cka_of_rows_at_equal_distances_is_rejected_in_every_dtype(n, dtype):
    one_hot, deviating = torch.eye(n, dtype=dtype), torch.zeros(n, 4, dtype=dtype) + 0.3
    deviating[3] = torch.arange(4)
    for x in (one_hot, 3 * one_hot, 0.1 * one_hot[torch.randperm(n)], deviating):
        other = torch.randn(n, 3, dtype=dtype, generator=torch.Generator().manual_seed(n))
        for pair in ((x, x), (x, other), (other, x)):
            with pytest.raises(ValueError, match=r"is -?0, not positive"):
                cka(*pair)
            for metric in (MinibatchCKA(), StreamingLinearCKA()):
                metric.update(*pair)
                with pytest.raises(ValueError, match=r"not positive|CKA is not defined"):
                    metric.compute()
        table = compare_models(torch.nn.Identity(), torch.nn.Identity(), [other]) if n < 50 else None
        assert table is None or table.iloc[0, 0] == pytest.approx(1)
        with pytest.raises(ValueError, match="CKA is not defined for layers"):
            compare_models(torch.nn.Identity(), torch.nn.Identity(), [x[:, :, None, None]])


@pytest.mark.parametrize("kernel", [Linear(), DistanceInduced()], ids=repr)
@pytest.mark.parametrize("unit", [1e-25, 1e-15, 1e8, 1e18, 1e30])
def test_units_do_not_change_cka(unit, kernel):
    x, y = (z.float() for z in samples())
    assert cka(unit * x, y, kernel, kernel).item() == pytest.approx(cka(x, y, kernel, kernel).item(), rel=1e-5)
    assert cka(unit * x, unit * x, kernel, kernel).item() == pytest.approx(1)


def far_row(z):
    z[0] = 1e5
    return z


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    "kernel", [Linear(), Gaussian(3.0), Gaussian(), Linear() + Gaussian(2.0), DistanceInduced()], ids=repr
)
@pytest.mark.parametrize("change", [lambda z: z + 1e6, lambda z: (3 * z.clamp(-3, 3)).exp(), far_row])
def test_float32_is_accurate_for_offsets_and_outliers(change, kernel, estimator):
    x, y = (change(z.float()) for z in samples(60, 3, 3))
    exact = cka(x.double(), y.double(), kernel, kernel, estimator, "dual").item()
    for route in ("auto", "dual", "tiled"):
        assert cka(x, y, kernel, kernel, estimator, route).item() == pytest.approx(exact, abs=1e-4)
    batches, exact_batches = (minibatch(*pair, [30, 30], kernel) for pair in ((x, y), (x.double(), y.double())))
    assert batches.compute().item() == pytest.approx(exact_batches.compute().item(), abs=1e-4)


def test_a_far_row_changes_no_digit_of_the_other_pairs():
    x = torch.randn(20, 1, generator=torch.Generator().manual_seed(0))
    far = torch.cat([x[:1] + 1e5, x[1:]])
    assert torch.allclose(Gaussian(1.0)(far)[1:, 1:], Gaussian(1.0)(x)[1:, 1:], rtol=1e-5, atol=0)


def test_cka_of_many_features_is_defined_and_accurate():
    x = torch.randn(20, 50_000, generator=torch.Generator().manual_seed(0))
    y = x + torch.randn(20, 50_000, generator=torch.Generator().manual_seed(1))
    assert cka(x, x).item() == pytest.approx(1)
    assert cka(x, y).item() == pytest.approx(cka(x.double(), y.double()).item(), abs=1e-3)


@pytest.mark.parametrize("call", [lambda x: cka(x, x), lambda x: cka(x, x, estimator="nobiased")])
def test_bad_arguments_are_rejected_as_by_hsic(call):
    with pytest.raises(ValueError, match=r"at least 4 rows, got 3|estimator must be one of"):
        call(torch.randn(3, 2))


# --- batches


def minibatch(x, y, sizes, kernel=None):
    metric = MinibatchCKA(kernel, kernel)
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        metric.update(a, b)
    return metric


@pytest.mark.parametrize("kernel", KERNELS)
def test_minibatch_cka_of_one_batch_equals_cka(kernel):
    x, y = samples()
    k = KERNELS[kernel]
    torch.testing.assert_close(minibatch(x, y, [30], k).compute(), cka(x, y, k, k), rtol=1e-12, atol=0)


@pytest.mark.parametrize("unit", [1e-15, 1e-11, 1e12, 1e17])
def test_units_of_float32_do_not_change_minibatch_cka(unit):
    x, y = (z.float() for z in samples())
    expected = cka((unit * x).double(), y.double())
    torch.testing.assert_close(minibatch(unit * x, y, [30]).compute(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kernel", ["linear", "gaussian"])
def test_hsic_of_batches_is_averaged_by_rows_before_the_ratio(kernel):
    x, y = samples(42)
    sizes = [20, 6, 16]
    sums = np.zeros(3)
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        k, l = numpy_gram(a.numpy(), kernel), numpy_gram(b.numpy(), kernel)
        sums += len(a) * np.array([numpy_hsic(*pair, "unbiased") for pair in ((k, l), (k, k), (l, l))])
    value = minibatch(x, y, sizes, KERNELS[kernel]).compute()
    assert float(value) == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), rel=1e-10)


def test_order_of_batches_does_not_change_cka():
    x, y = samples(64)
    batches = list(zip(x.split(10), y.split(10), strict=True))  # the last has 4 rows
    values = []
    for order in (batches, batches[::-1], batches[3:] + batches[:3]):
        metric = MinibatchCKA(Gaussian(2.0), Gaussian(2.0))
        for a, b in order:
            metric.update(a, b)
        values.append(metric.compute())
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(values[0], values[2], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "sizes, joined",
    [
        ([10, 10, 3], [10, 13]),
        ([10, 10, 1], [10, 11]),
        ([2, 10, 11], [12, 11]),
        ([10, 2, 11], [12, 11]),
        ([1, 1, 1, 1, 9, 10], [4, 9, 10]),
    ],
)
def test_small_batch_joins_its_neighbor(sizes, joined):
    x, y = samples(sum(sizes))
    torch.testing.assert_close(minibatch(x, y, sizes).compute(), minibatch(x, y, joined).compute(), rtol=1e-12, atol=0)


def test_batch_size_changes_biased_cka_only():
    x, _ = samples(4096, 20, 20)
    y = x + 2 * torch.randn(4096, 20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    full = float(cka(x, y))
    assert float(minibatch(x, y, [16] * 256).compute()) == pytest.approx(full, abs=0.01)
    batches = zip(x.split(16), y.split(16), strict=True)
    assert np.mean([float(cka(a, b, estimator="biased")) for a, b in batches]) > full + 0.2


def test_median_rule_is_fitted_to_the_first_batch_and_forgotten_on_reset():
    x, y = samples(40)
    sizes = [20, 20]
    fixed = MinibatchCKA(Gaussian().fit(x[:20]), Gaussian().fit(y[:20]))
    for a, b in zip(x.split(sizes), (y * 5).split(sizes), strict=True):
        fixed.update(a, b / 5)
    metric = minibatch(x, y, sizes, Gaussian())
    torch.testing.assert_close(metric.compute(), fixed.compute())
    metric = minibatch(x[:20], y[:20] * 5, [20], Gaussian())
    metric.compute()
    metric.update(x[20:22], y[20:22] * 5)  # joins the batch before it
    alone = minibatch(x[:22], y[:22] * 5, [20, 2], Gaussian())
    torch.testing.assert_close(metric.compute(), alone.compute(), rtol=0, atol=0)
    metric.reset()
    metric.update(x * 100, y)
    torch.testing.assert_close(metric.compute(), minibatch(x, y, [40], Gaussian()).compute())


def test_minibatch_cka_copies_batches_without_graph_and_continues_after_compute():
    x, y = samples(40)
    buffer = x[:20].clone().requires_grad_()
    metric = MinibatchCKA()
    metric.update(buffer, y[:20])
    assert not metric.compute().requires_grad
    with torch.no_grad():
        buffer.copy_(x[20:])
    metric.update(buffer, y[20:])
    torch.testing.assert_close(metric.compute(), minibatch(x, y, [20, 20]).compute())


def test_minibatch_cka_rejects_bad_input():
    x, y = samples()
    metric = MinibatchCKA()
    with pytest.raises(ValueError, match="at least 4 rows, got 0"):
        metric.compute()
    metric.update(x[:3], y[:3])
    with pytest.raises(ValueError, match="at least 4 rows, got 3"):
        metric.compute()
    with pytest.raises(ValueError, match="y had 7 columns in the batch before, now 5"):
        metric.update(x, x)
    with pytest.raises(ValueError, match="same number of rows"):
        metric.update(x, y[:4])


@pytest.mark.parametrize("make", [MinibatchCKA, lambda: MinibatchCKA(Gaussian(1.0)), StreamingLinearCKA])
@pytest.mark.parametrize("constant", [0.1, 0.7, 1.3, 123.4])
def test_constant_batches_are_rejected(make, constant):
    metric, flat = make(), torch.full((11, 3), constant, dtype=torch.float64)
    for _ in range(3):
        metric.update(flat, samples(11)[1])
    with pytest.raises(ValueError, match=r"HSIC\(x, x\) is -?0, not positive"):
        metric.compute()


def test_minibatch_cka_of_labels_equals_cka():
    x, labels = samples(30)[0], torch.arange(30) % 3
    metric = MinibatchCKA(kernel_y=Delta())
    metric.update(x, labels)
    torch.testing.assert_close(metric.compute(), cka(x, labels, kernel_y=Delta()))


# --- streams


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("sizes", [[50], [1] * 50, [3, 30, 1, 16]])
def test_streams_equal_the_estimate_of_all_rows(estimator, sizes):
    x, y = samples(50)
    x, y = x + torch.linspace(-40, 40, 50, dtype=x.dtype)[:, None], y - 1000  # drifting, far from 0
    streams = StreamingLinearHSIC(), StreamingLinearCKA()
    for stream in streams:
        stream.update(y[:, :5], x)  # forgotten
        stream.reset()
        for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
            stream.update(a, b)
    k, l = (numpy_gram((z - z.mean(0)).numpy(), "linear") for z in (x, y))
    assert float(streams[0].compute(estimator)) == pytest.approx(numpy_hsic(k, l, estimator), rel=1e-9)
    assert float(streams[1].compute(estimator)) == pytest.approx(
        numpy_cka(x - x.mean(0), y - y.mean(0), "linear", estimator), rel=1e-9
    )


def test_float32_stream_far_from_0_is_accurate():
    x, y = samples(2000, dtype=torch.float32)
    x, y = x + 1000, y - 1000
    stream = StreamingLinearCKA()
    for a, b in zip(x.split(64), y.split(64), strict=True):
        stream.update(a, b)
    torch.testing.assert_close(stream.compute(), cka(x.double(), y.double()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("make, least", [(StreamingLinearHSIC, 2), (StreamingLinearCKA, 4)])
def test_streams_reject_bad_input(make, least):
    stream = make()
    with pytest.raises(ValueError, match=f"at least {least} rows, got 0"):
        stream.compute()
    x, y = samples()
    stream.update(x, y)
    with pytest.raises(ValueError, match=r"\(5, 7\) columns in the chunks before, now \(7, 5\)"):
        stream.update(y, x)
    with pytest.raises(ValueError, match="estimator must be one of"):
        stream.compute("nobiased")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", [MinibatchCKA, StreamingLinearCKA])
def test_cuda_agrees_with_the_cpu(make):
    x, y = samples()
    values = []
    for device in ("cpu", "cuda"):
        metric = make()
        metric.update(x.to(device), y.to(device))
        metric.update(x.to(device) ** 2, y.to(device))
        values.append(metric.compute().cpu())
    torch.testing.assert_close(*values)
    torch.testing.assert_close(cka(x.cuda(), y.cuda()).cpu(), cka(x, y))


@pytest.mark.parametrize("n", [50, 1000])
def test_one_pair_of_equal_labels_gives_accurate_cka(n):
    labels = torch.arange(n)
    labels[1] = 0
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    assert cka(labels, labels, Delta(), Delta()).item() == pytest.approx(1)
    exact = cka(x.double(), torch.nn.functional.one_hot(labels).double())
    assert cka(x, labels, None, Delta()).item() == pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.parametrize("route", ["auto", "primal", "dual"])
def test_cka_with_one_distant_row_is_accurate(route):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 10, generator=generator, dtype=torch.float64)
    x[0, 0] = 1e6
    y = x + 0.1 * torch.randn(1000, 10, generator=generator, dtype=torch.float64)
    k, l = (numpy_gram((z - z.mean(0)).numpy(), "linear") for z in (x, y))
    exact = float((u_center(torch.from_numpy(k)) * u_center(torch.from_numpy(l))).sum())
    exact /= float(u_center(torch.from_numpy(k)).norm() * u_center(torch.from_numpy(l)).norm())
    assert cka(x, y, route=route).item() == pytest.approx(exact, rel=1e-6)
    assert cka(x.float(), y.float(), route=route).item() == pytest.approx(exact, rel=1e-3)
    stream = StreamingLinearCKA()
    stream.update(x.float(), y.float())
    with pytest.raises(ValueError, match="feed float64"):
        stream.compute()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e3, 3e4])
@pytest.mark.parametrize(
    ("kernel", "gram_of"),
    [
        (Linear() + Delta(), lambda products, equal: products + equal),
        (Polynomial(2), lambda products, _: (products + 1) ** 2),
        (Linear() + Polynomial(2), lambda products, _: products + (products + 1) ** 2),
    ],
    ids=["linear_delta", "polynomial", "linear_polynomial"],
)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kernels_of_the_origin_keep_their_digits_far_from_it(kernel, gram_of, estimator, offset, dtype):
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(-8, 9, (2, 30, 2), generator=generator).double() / 4  # exact in float32 beside the offset
    x, y = whole[0] + offset, whole[0] / 2 + whole[1] + offset
    x_exact, y_exact = (z.numpy().astype(np.longdouble) for z in (x, y))

    def centered(z):
        gram = gram_of(z @ z.T, (z[:, None] == z[None]).all(axis=-1))
        if estimator == "biased":
            return gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
        np.fill_diagonal(gram, 0)
        rows, n = gram.sum(0), len(gram)
        gram = gram - (rows + rows[:, None]) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(gram, 0)
        return gram

    a, b = centered(x_exact), centered(y_exact)
    exact = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    found = cka(x.to(dtype), y.to(dtype), kernel, kernel, estimator)
    assert found.item() == pytest.approx(float(exact), abs=1e-6)


def test_a_kernel_of_ones_own_gets_the_dtype_of_the_samples_in_sums_too():
    weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))

    class Own(Kernel):
        def gram(self, x, y):
            return torch.tanh(x @ weights) @ torch.tanh((x if y is None else y) @ weights).T

    x, y = (z.float() for z in samples(p=5, q=5))
    for kernel in (Own(), Own() + Linear(), Own() * Linear(), Own() + Polynomial(2), Delta() + Own()):
        assert 0 < cka(x, y, kernel, kernel).item() < 1 and hsic(x, y, kernel, kernel).dtype == torch.float32


@pytest.mark.parametrize("kernel", [Gaussian(100.0), InverseMultiquadric(100.0)], ids=repr)
def test_wide_kernels_of_few_rows_are_as_exact_in_float32_as_in_float64(kernel):
    x, y = (z.float() for z in samples(4, 200, 200))
    exact = cka(x.double(), y.double(), kernel, kernel).item()
    assert cka(x, y, kernel, kernel).item() == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("offset", [1e8, 1e12])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_powers_without_digits_are_refused_as_by_hsic(estimator, offset):
    x = torch.randn(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="is constant on x up to rounding error"):
        cka(x + offset, x, Polynomial(2), Polynomial(2), estimator=estimator)
    with pytest.raises(ValueError, match="is constant on y up to rounding error"):
        cka(x, x + offset, Polynomial(2), Polynomial(2), estimator=estimator)
    with pytest.raises(ValueError, match="is constant on x up to rounding error"):
        MinibatchCKA(Polynomial(2), Polynomial(2)).update(x + offset, x)
