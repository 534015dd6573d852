"""Relations of the losses to HSIC and to each other, their expected values and their lower bounds."""

import itertools
import math

import numpy as np
import pytest
import torch
from losses_table import data, minimize, off, standardized, unit, views

from hsic_lab.hsic import hsic
from hsic_lab.kernels import NAMED, Gaussian, InverseMultiquadric, Kernel, Linear, named
from hsic_lab.losses import (
    BarlowTwinsLoss,
    HSICSSLLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    ReferenceCodeLoss,
    SIGRegLoss,
    SpectralContrastiveLoss,
    SSLHSICLoss,
    SupConLoss,
    VICRegLoss,
)
from hsic_lab.losses._off_diagonal import split_squared_norm
from hsic_lab.training import TrainConfig
from hsic_lab.training._setup import make_loss


def close(actual, expected, tolerance=1e-11):
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("route", ["primal", "dual"])
@pytest.mark.parametrize("n, d", [(9, 4), (4, 9)])
@pytest.mark.parametrize("contrast", ["dimensions", "samples"])
@pytest.mark.parametrize("one", [True, False])
def test_both_contrasts_match_numpy_by_both_routes(route, n, d, contrast, one):
    x = data(n, d, 1)
    y = x if one else data(n, d, 2)
    a, b = (x.T.numpy(), y.T.numpy()) if contrast == "samples" else (x.numpy(), y.numpy())
    expected = (off(a.T @ a) * off(b.T @ b)).sum() if contrast == "samples" else (off(a.T @ b) ** 2).sum()
    diagonal, squared_norm, _ = split_squared_norm(*((x,) if one else (x, y)), route=route, contrast=contrast)
    close(squared_norm, expected / n**2)
    close(diagonal, (x * y).mean(dim=0))
    inputs = [z.clone().requires_grad_() for z in ((x,) if one else (x, y))]
    assert torch.autograd.gradcheck(lambda *z: split_squared_norm(*z, route=route, contrast=contrast)[:2], inputs)


def test_squared_norms_of_features_and_of_images_differ_by_their_diagonals():
    # Garrido et al. 2023, theorem 3.3, for two views.
    x, y = data(9, 4, 1), data(9, 4, 2)
    (diagonal, features, _), (_, images, _) = (split_squared_norm(x, y, contrast=c) for c in ("dimensions", "samples"))
    rows = (x.square().sum(dim=1) * y.square().sum(dim=1)).sum() / 81
    close(features + diagonal.square().sum(), images + rows)


def test_each_contrast_bounds_the_other_for_rows_of_unit_length():
    # Garrido et al. 2023, corollary 3.4.1, with N embeddings in M dimensions.
    n, m = 12, 5
    z = torch.nn.functional.normalize(data(n, m), dim=1)
    features, images = (float(n**2 * split_squared_norm(z, contrast=c)[1]) for c in ("dimensions", "samples"))
    assert features - n + n**2 / m <= images + 1e-12
    assert images <= features - n + n**2 + 1e-12


def test_covariance_term_of_vicreg_is_hsic_of_a_view_with_itself():
    n, d, z = 16, 5, data(16, 5)
    covariance = VICRegLoss(0, 0, 0.5).terms(z, z)["covariance"]
    close(d * covariance, (n / (n - 1)) ** 2 * hsic(z, z) - z.var(dim=0).square().sum())


def test_spectral_loss_is_a_function_of_the_second_moment():
    # The mean over all pairs of rows is ||E z z'||_F^2.
    z = 0.3 * data(16, 4)
    terms = SpectralContrastiveLoss(mu=100.0).terms(z, z)
    second_moment = z.T @ z / 16
    pairs = 16 * 15 * 100 * terms["contrast"] + z.square().sum(dim=1).square().sum()
    close(pairs / 256, second_moment.square().sum())
    close(100 * terms["alignment"], -2 * second_moment.trace())


@pytest.mark.parametrize("kernel", [Gaussian(1.5), Linear()])
def test_dependence_is_hsic_with_the_identity_of_the_image(kernel):
    z_a, z_b = views(6, 3)
    z, n, v = torch.cat([z_a, z_b]), 6, 2
    identity = torch.eye(n).double().repeat(v, 1)
    gram = kernel(z)
    # hsic() includes the pairs of a projection with itself.
    with_itself = n * hsic(z, identity, kernel) + gram.mean()
    expected = (v * with_itself - gram.diagonal().mean()) / (v - 1) - gram.mean()
    terms = SSLHSICLoss(kernel, gamma=1.0).terms(z_a, z_b)
    close(-terms["dependence"], expected)
    close(terms["self_dependence"] ** 2, hsic(z, z, kernel, kernel))


def test_dependence_is_the_mean_distance_between_the_images():
    # Li et al. 2021, appendix B.2: sum of the squared MMD between the views of every two images.
    z_a, z_b = views(6, 3)
    z, kernel = torch.cat([z_a, z_b]), Gaussian(1.5)
    gram = kernel(z).reshape(2, 6, 2, 6).mean(dim=(0, 2))
    mmd = gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
    close(mmd.sum() / (2 * 6**2), 6 * hsic(z, torch.eye(6).double().repeat(2, 1), kernel))


def test_linear_ssl_hsic_compares_the_trace_of_c_with_a_covariance():
    x, y = (torch.from_numpy(standardized(z.numpy())) for z in views(16, 5))
    terms = SSLHSICLoss(Linear(), gamma=1.0).terms(x, y)
    c = x.T @ y / 16
    pooled = torch.cat([x, y])
    close(-terms["dependence"], c.trace())
    close(terms["self_dependence"], (pooled.T @ pooled / 32).norm())


@pytest.mark.parametrize("kernel", ["linear", "imq"])
def test_norm_of_a_large_matrix_is_exact_in_float32(kernel):
    n, d = (600, 1024) if kernel == "linear" else (1024, 64)
    a, loss = data(n, d).float(), SSLHSICLoss(kernel)
    single, double = (loss.terms(z, z.flip(1))["self_dependence"].double() for z in (a, a.double()))
    close(single, double, 2e-6)


def test_gradients_of_a_collapsed_or_partly_constant_projection_are_finite():
    for kernel in ("linear", "gaussian"):
        for z in (torch.ones(8, 3), data(8, 3) * torch.tensor([1.0, 0, 0])):
            z = z.double().requires_grad_()
            (first,) = torch.autograd.grad(SSLHSICLoss(kernel)(z, z), z, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), z)
            assert first.isfinite().all() and second.isfinite().all()


@pytest.mark.parametrize("loss", [NTXentLoss(), SupConLoss(), NegativeCosineSimilarity(), ReferenceCodeLoss(),
                                  SpectralContrastiveLoss()], ids=repr)  # fmt: skip
def test_a_row_of_zeros_has_finite_derivatives(loss):
    """A projection after a dead ReLU; its direction is not defined, and it asks for no change."""
    z_a, z_b = views(8, 16, dtype=torch.float32)
    z_a[3] = 0
    z_a.requires_grad_()
    (first,) = torch.autograd.grad(loss(z_a, z_b), z_a, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), z_a)
    assert first[3].norm() < 10 * first.norm(dim=1).median() and second.isfinite().all()


@pytest.mark.parametrize("loss", [NTXentLoss(), SupConLoss(), NegativeCosineSimilarity()], ids=repr)
@pytest.mark.parametrize("scale", [1e-30, 1e-13, 1e19, 1e30])
def test_the_length_of_rows_does_not_matter_at_any_scale(loss, scale):
    z_a, z_b = views(8, 16, dtype=torch.float32)
    close(loss(scale * z_a, scale * z_b), loss(z_a, z_b), 1e-6)


def test_kernel_features_and_gram_agree_for_the_linear_kernel():
    class Products(Kernel):
        def gram(self, x, y):
            return x @ x.T

    for n, d in ((4, 30), (30, 4)):
        close(SSLHSICLoss(Linear())(*views(n, d)), SSLHSICLoss(Products())(*views(n, d)))


@pytest.mark.parametrize("kernel", [Gaussian(1.5), InverseMultiquadric(1.5)])
def test_error_of_random_features_falls_with_the_root_of_their_number(kernel):
    z_a, z_b = views(32, 3)
    exact = SSLHSICLoss(kernel)(z_a, z_b)

    def error(count):
        loss = SSLHSICLoss(kernel, random_features=count)
        return torch.stack([loss(z_a, z_b) - exact for _ in range(60)]).square().mean().sqrt()

    assert math.log2(error(64) / error(1024)) / 4 == pytest.approx(0.5, abs=0.2)


def test_kernel_by_name_reaches_the_loss_from_a_settings_file():
    z_a, z_b = views(8, 3)
    for name in NAMED:
        loss = make_loss(TrainConfig(loss="ssl_hsic", loss_options={"kernel": name}))
        assert torch.equal(loss(z_a, z_b), SSLHSICLoss(named(name))(z_a, z_b))
    assert torch.equal(SSLHSICLoss()(z_a, z_b), SSLHSICLoss(InverseMultiquadric())(z_a, z_b))


def test_random_features_depend_on_the_seed_only():
    z_a, z_b = views(8, 3)
    state = torch.get_rng_state()
    first, again, other = (SSLHSICLoss(random_features=16, seed=seed) for seed in (1, 1, 2))
    values = [float(first(z_a, z_b)), float(first(z_a, z_b))]
    assert values == [float(again(z_a, z_b)), float(again(z_a, z_b))]
    assert values[0] != values[1] and values[0] != float(other(z_a, z_b))
    assert torch.equal(torch.get_rng_state(), state)


def test_info_nce_is_ssl_hsic_for_kernels_of_small_variance():
    # log mean exp(k) = mean k + Var k / 2 + O(third cumulant): halving 1/T divides the remainder by eight.
    z_a, z_b = views(24, 4)

    def remainder(temperature):
        terms = NTXentLoss(temperature).terms(z_a, z_b)
        z = torch.cat([z_a, z_b])
        z = torch.nn.functional.normalize(z, dim=1)
        others = (z @ z.T / temperature)[~torch.eye(48, dtype=torch.bool)].reshape(48, 47)
        expansion = math.log(47) + others.mean() + others.var(dim=1, correction=0).mean() / 2
        return float(terms["uniformity"] - expansion)

    assert remainder(8.0) / remainder(16.0) == pytest.approx(8, rel=0.15)


@pytest.mark.parametrize("rescale", [True, False])
def test_supervised_loss_matches_a_loop_over_pairs(rescale):
    parts, labels, t = [data(7, 3, seed).numpy() for seed in (1, 2, 3)], np.array([0, 1, 0, 2, 1, 0, 5]), 0.2
    z, every = unit(np.concatenate(parts)), np.tile(labels, 3)
    losses = []
    for i in range(21):
        others = [j for j in range(21) if j != i]
        log_sum = np.log(sum(np.exp(z[i] @ z[j] / t) for j in others))
        losses.append(np.mean([log_sum - z[i] @ z[p] / t for p in others if every[p] == every[i]]))
    loss = SupConLoss(t, rescale=rescale)
    close(loss(*map(torch.from_numpy, parts), labels=torch.from_numpy(labels)), np.mean(losses) * (t if rescale else 1))


@pytest.mark.parametrize("temperature", [0.07, 0.1])
def test_supervised_loss_matches_the_code_of_its_authors(temperature):
    # The operations of github.com/HobbitLong/SupContrast, losses.py, with contrast_mode "all".
    z_a, z_b = views(8, 4)
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 5, 2])

    def authors_code(base_temperature):
        features = torch.nn.functional.normalize(torch.cat([z_a, z_b]), dim=1).numpy()
        logits = features @ features.T / temperature
        logits -= logits.max(axis=1, keepdims=True)
        every = 1 - np.eye(16)
        mask = (np.tile(labels, 2)[:, None] == np.tile(labels, 2)) * every
        log_prob = logits - np.log((np.exp(logits) * every).sum(axis=1, keepdims=True))
        return -temperature / base_temperature * ((mask * log_prob).sum(axis=1) / mask.sum(axis=1)).mean()

    close(SupConLoss(temperature, rescale=False)(z_a, z_b, labels=labels), authors_code(temperature))
    close(SupConLoss(temperature, rescale=True)(z_a, z_b, labels=labels), authors_code(1.0))
    close(SupConLoss(temperature)(z_a, z_b, labels=labels), authors_code(1.0))


def test_supervised_loss_without_labels_is_nt_xent():
    close(SupConLoss(0.2, rescale=False)(*views()), NTXentLoss(0.2)(*views()))


def test_three_views_of_ssl_hsic_average_over_pairs_of_views():
    parts = [data(5, 3, seed) for seed in (1, 2, 3)]
    gram, kernel = Gaussian(1.5)(torch.cat(parts)).reshape(3, 5, 3, 5), Gaussian(1.5)
    pairs = torch.stack([gram[p, :, q].diagonal().mean() for p in range(3) for q in range(3) if p != q]).mean()
    close(-SSLHSICLoss(kernel).terms(*parts)["dependence"], pairs - gram.mean())


INDEPENDENT = [
    BarlowTwinsLoss(),
    BarlowTwinsLoss(None),
    BarlowTwinsLoss(0.5, contrast="samples"),
    HSICSSLLoss(),
    HSICSSLLoss(0.2, 0.3),
    VICRegLoss(),
    VICRegLoss(contrast="samples"),
    SpectralContrastiveLoss(mu=1e-2),
    NegativeCosineSimilarity(),
    SIGRegLoss(),
    SIGRegLoss(0.7),
    SIGRegLoss(0.7, slices=32),
    SIGRegLoss(0.2, global_views=1),
]


@pytest.mark.parametrize("n, d", [(12, 4), (5, 20)])
@pytest.mark.parametrize("loss", INDEPENDENT, ids=repr)
def test_expected_if_independent_is_the_mean_over_independent_views(loss, n, d):
    draws = torch.stack([loss(data(n, d, 2 * seed), data(n, d, 2 * seed + 1)) for seed in range(300)])
    error = draws.std() / math.sqrt(len(draws))
    # 4 standard errors, and eps, which the expected loss of VICReg leaves out.
    assert abs(float(draws.mean()) - loss.expected_if_independent(n, d)) < 4 * error + (
        1e-2 if isinstance(loss, VICRegLoss) else 0
    )


@pytest.mark.parametrize(
    "loss, n, d",
    [
        (BarlowTwinsLoss(0.5), 12, 4),
        (BarlowTwinsLoss(0.5), 4, 8),
        (BarlowTwinsLoss(0.5, contrast="samples"), 5, 8),
        (HSICSSLLoss(), 12, 4),
        (HSICSSLLoss(), 4, 8),
        (HSICSSLLoss(), 2, 3),
        (HSICSSLLoss(0.1, -0.5), 2, 6),
        (HSICSSLLoss(0.1, 0.3), 2, 3),
        (HSICSSLLoss(0.1, 0.3), 12, 4),
        (VICRegLoss(), 12, 4),
        (VICRegLoss(), 4, 20),
        (NTXentLoss(), 5, 6),
        (SpectralContrastiveLoss(), 12, 4),
        (SpectralContrastiveLoss(mu=10.0), 12, 4),
        (SpectralContrastiveLoss(), 4, 8),
        (NegativeCosineSimilarity(), 5, 3),
    ],
    ids=repr,
)
def test_lower_bound_is_the_minimum_of_identical_views(loss, n, d):
    ends = []
    for seed in range(3 if n > 2 else 12):  # with two rows only the signs of their difference matter
        z = data(n, d, seed).requires_grad_()
        ends.append(minimize(lambda z=z: loss(z, z), z, steps=500))
    tolerance = 2e-2 if isinstance(loss, VICRegLoss) else 1e-3
    assert min(ends) == pytest.approx(loss.lower_bound(n, d), abs=tolerance)


def test_unequal_variances_can_go_below_the_bound_of_vicreg():
    loss = VICRegLoss(nu_param=30.0, eps=0.0)
    unit = torch.tensor([[-(0.5**0.5)], [0.5**0.5]], dtype=torch.float64)
    equal = [unit * torch.tensor([std, std]) for std in np.linspace(0, 1, 1001)]
    assert loss.lower_bound(2, 2) == pytest.approx(min(float(loss(z, z)) for z in equal), abs=1e-4)
    z = unit * torch.tensor([1.0, 0.1])
    assert float(loss(z, z)) < loss.lower_bound(2, 2) - 4


def test_lower_bound_lies_below_the_minimum_where_no_views_attain_it():
    """Columns of three standardized rows are directions in a plane: the search over two angles is exhaustive."""
    loss, angles = HSICSSLLoss(off_diagonal_target=0.4), np.linspace(0, 2 * np.pi, 721)
    second, third = np.meshgrid(angles, angles)
    values = 2 / 3 * sum((np.cos(angle) - 0.4) ** 2 for angle in (second, third, second - third))
    basis = np.linalg.qr(np.stack([np.ones(3), [0, 1, 2], [0, 0, 1]], axis=1))[0][:, 1:]
    best = np.unravel_index(values.argmin(), values.shape)
    columns = np.array([[np.cos(a), np.sin(a)] for a in (0, second[best], third[best])]).T
    z = torch.from_numpy(basis @ columns)
    assert float(loss(z, z)) == pytest.approx(values.min(), abs=1e-12)
    assert loss.lower_bound(3, 3) < values.min() - 0.03


def test_gradients_of_small_batches_average_to_that_of_all_images_in_the_spectral_loss_alone():
    a, b = data(8, 3), data(8, 3, 1)

    def gradient(loss, rows):
        weight = torch.eye(3, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(loss(a[rows] @ weight, b[rows] @ weight), weight)[0]

    for loss in (SpectralContrastiveLoss(), BarlowTwinsLoss(), NTXentLoss()):
        small = torch.stack([gradient(loss, list(rows)) for rows in itertools.combinations(range(8), 4)]).mean(dim=0)
        bias = float((small - (whole := gradient(loss, list(range(8))))).norm() / whole.norm())
        assert bias < 1e-12 if isinstance(loss, SpectralContrastiveLoss) else bias > 0.01


def test_contrast_samples_changes_the_squared_term_alone():
    features, images = (HSICSSLLoss(contrast=c).terms(data(8, 5), data(8, 5, 1)) for c in ("dimensions", "samples"))
    changed = {name for name in features if not torch.isclose(features[name], images[name], rtol=1e-9)}
    assert changed == {"redundancy"}


@pytest.mark.parametrize("loss", [BarlowTwinsLoss(), VICRegLoss(), HSICSSLLoss()], ids=repr)
def test_reference_values_need_two_rows(loss):
    for value in (loss.expected_if_independent, loss.lower_bound):
        with pytest.raises(ValueError, match="n must be an integer of at least 2, got 1"):
            value(1, 8)
        with pytest.raises(ValueError, match="d must be an integer of at least 1, got 0"):
            value(8, 0)


@pytest.mark.parametrize("temperature", [1e-3, 0.07, 0.5])
def test_lower_bound_of_nt_xent_at_any_temperature(temperature):
    one = data(1, 4)
    assert NTXentLoss(temperature).lower_bound(1, 4) == float(NTXentLoss(temperature)(one, one)) == 0
    simplex = (torch.eye(6) - 1 / 6).double()
    assert float(NTXentLoss(temperature)(simplex, simplex)) == pytest.approx(
        NTXentLoss(temperature).lower_bound(6, 6), abs=1e-9
    )


def test_unknown_reference_values_are_not_implemented():
    with pytest.raises(NotImplementedError, match="independent views depends on the data for NTXentLoss"):
        NTXentLoss().expected_if_independent(8, 4)
    with pytest.raises(NotImplementedError, match="smallest SSLHSICLoss is known"):
        SSLHSICLoss().lower_bound(8, 4)
    with pytest.raises(NotImplementedError):
        NTXentLoss().lower_bound(8, 4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: BarlowTwinsLoss(-1), "lambda_param must be a number of at least 0, got -1"),
        (lambda: HSICSSLLoss(-1), "lambda_param must be a number of at least 0, got -1"),
        (lambda: BarlowTwinsLoss(float("nan")), "got nan"),
        (lambda: HSICSSLLoss(float("nan")), "got nan"),
        (lambda: ReferenceCodeLoss(-1), "lambda_param must be a number of at least 0, got -1"),
        (lambda: BarlowTwinsLoss(route="gram"), "route must be one of 'auto', 'primal', 'dual', got 'gram'"),
        (lambda: HSICSSLLoss(route="gram"), "route must be one of 'auto', 'primal', 'dual', got 'gram'"),
        (lambda: NTXentLoss(0.0), "temperature must be a number above 0, got 0.0"),
        (lambda: SupConLoss(-1.0), "temperature must be a number above 0, got -1.0"),
        (lambda: VICRegLoss(mu_param=-2), "mu_param must be a number of at least 0, got -2"),
        (lambda: VICRegLoss(contrast="rows"), "contrast must be one of 'dimensions', 'samples', got 'rows'"),
        (lambda: SpectralContrastiveLoss(mu=0), "mu must be a number above 0, got 0"),
        (lambda: SSLHSICLoss(gamma=float("nan")), "gamma must be a number of at least 0, got nan"),
        (lambda: SSLHSICLoss("rbf"), "kernel must be one of 'linear', 'gaussian', 'laplace', 'imq', got 'rbf'"),
        (lambda: SSLHSICLoss(Linear(), random_features=8), "its own feature map, got random_features=8"),
        (lambda: SSLHSICLoss(random_features=7), "an even number of at least 2, got 7"),
        (lambda: SupConLoss()(*views(), labels=torch.zeros(3).long()), r"shape \(16,\), got torch.int64 \(3,\)"),
        (lambda: SupConLoss()(*views(), labels=torch.zeros(16)), r"integers of shape \(16,\), got torch.float32"),
        (lambda: SupConLoss()(*views(), labels=torch.zeros(16).cfloat()), r"got torch.complex64 \(16,\)"),
        (lambda: SupConLoss()(*views(), labels=torch.zeros(16, device="meta").long()), "of the views, cpu, got meta"),
        (lambda: SupConLoss()(*views(), data(16, 4)), r"z_a and view 3 .* \(16, 5\) and \(16, 4\)"),
        (lambda: NTXentLoss("0.5"), "temperature must be a number above 0, got '0.5'"),
        (lambda: NTXentLoss(True), "temperature must be a number above 0, got True"),
        (lambda: BarlowTwinsLoss("1/d"), "lambda_param must be a number of at least 0, got '1/d'"),
        (
            lambda: HSICSSLLoss(off_diagonal_target=float("nan")),
            "off_diagonal_target must be a number that is finite, got nan",
        ),
    ],
)
def test_arguments_that_are_not_accepted_are_quoted(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: SupConLoss()(*views(), labels=[0] * 16),
            "labels must be a torch.Tensor, got list; torch.as_tensor makes one",
        ),
        (
            lambda: SupConLoss()(*views(), torch.arange(16)),
            r"labels=labels\), got a tensor of torch.int64, shape \(16,\)",
        ),
        (lambda: SupConLoss()(*views(), np.arange(16)), "view 3 must be a torch.Tensor, got ndarray"),
        (lambda: BarlowTwinsLoss()(*views(), torch.arange(16)), "view 3 must be floating point, got torch.int64"),
        (lambda: NTXentLoss(0.5, 4096), "gather_distributed must be of type bool, got int 4096"),
        (lambda: SupConLoss(rescale="no"), "rescale must be of type bool, got str 'no'"),
        (lambda: SSLHSICLoss(standardized="no"), "standardized must be of type bool, got str 'no'"),
        (lambda: ReferenceCodeLoss(unit_rows="no"), "unit_rows must be of type bool, got str 'no'"),
        (lambda: ReferenceCodeLoss(bessel=0), "bessel must be of type bool, got int 0"),
        (lambda: SIGRegLoss(slices=8, seed=None), "seed must be an integer of at least 0, got None"),
        (lambda: SSLHSICLoss(random_features=8.0), "an integer of at least 2, got 8.0"),
        (lambda: SSLHSICLoss(random_features=8, seed="a"), "seed must be an integer of at least 0, got 'a'"),
    ],
)
def test_arguments_of_another_type_are_quoted(call, message):
    with pytest.raises(TypeError, match=message):
        call()
