"""Properties of every loss of two or more views, for the losses of `losses_table`."""

import copy
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as fwd
from losses_table import LOSSES, data, off, views
from torch.utils.checkpoint import checkpoint

from hsic_lab import losses
from hsic_lab.kernels import NAMED, Gaussian, Laplace
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

SIZES = [(2, 1), (2, 2), (3, 1), (3, 2), (4, 3), (16, 5), (64, 5), (6, 40)]

every_loss = pytest.mark.parametrize("name", LOSSES)


def losses_with(law):
    return pytest.mark.parametrize("name", [name for name, (_, _, laws) in LOSSES.items() if law in laws])


def gradients(loss, z_a, z_b):
    z_a, z_b = z_a.clone().requires_grad_(), z_b.clone().requires_grad_()
    return torch.autograd.grad(loss(z_a, z_b), (z_a, z_b))


@every_loss
@pytest.mark.parametrize("n, d", SIZES)
def test_value_matches_numpy(name, n, d):
    loss, oracle, _ = LOSSES[name]
    z_a, z_b = views(n, d)
    expected = oracle(z_a.numpy(), z_b.numpy())
    assert loss(z_a, z_b).shape == ()
    np.testing.assert_allclose(float(loss(z_a, z_b)), expected, rtol=1e-10, atol=1e-10)
    value = loss(z_a.float(), z_b.float())
    assert value.dtype == torch.float32
    np.testing.assert_allclose(float(value), expected, rtol=1e-4, atol=1e-4)


@every_loss
def test_terms_sum_to_the_loss(name):
    loss, (z_a, z_b) = LOSSES[name][0], views()
    torch.testing.assert_close(sum(loss.terms(z_a, z_b).values()), loss(z_a, z_b), rtol=1e-14, atol=0)
    assert all(term.shape == () for term in loss.terms(z_a, z_b).values())


@every_loss
@pytest.mark.parametrize("n, d", [(6, 3), (4, 7)])
def test_gradient_matches_finite_differences(name, n, d):
    z_a, z_b = views(n, d)
    assert torch.autograd.gradcheck(LOSSES[name][0], (z_a.requires_grad_(), z_b.requires_grad_()))


@every_loss
@pytest.mark.parametrize("n, d", [(6, 3), (4, 7)])
def test_second_derivatives_match_finite_differences(name, n, d):
    z_a, z_b = views(n, d)
    assert torch.autograd.gradgradcheck(LOSSES[name][0], (z_a.requires_grad_(), z_b.requires_grad_()))


def hessian_product(loss, z_a, z_b, direction):
    """The Hessian with respect to z_a times the direction, by a second `backward` as a gradient penalty needs it."""
    z_a = z_a.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(z_a, z_b), z_a, create_graph=True)
    (first * direction).sum().backward()
    return z_a.grad


def several(count, n=6, d=4, dtype=torch.float64):
    """Correlated views with a gradient."""
    z = data(n, d, dtype=dtype)
    return [(z + 0.5 * data(n, d, 100 + view, dtype)).requires_grad_() for view in range(count)]


ROUTED = {
    f"{make.__name__} {route} {options}": make(route=route, **options)
    for make, options in [
        (HSICSSLLoss, {}),
        (HSICSSLLoss, {"contrast": "samples"}),
        (VICRegLoss, {}),
        (VICRegLoss, {"contrast": "samples"}),
        (SpectralContrastiveLoss, {}),
    ]
    for route in ("primal", "dual")
}
SEVERAL = {name: loss for name, (loss, _, _) in LOSSES.items()} | ROUTED
AT_ONCE = SSLHSICLoss, SIGRegLoss, SupConLoss  # their loss of several views is no mean over pairs


@pytest.mark.parametrize("name", [name for name, loss in SEVERAL.items() if not isinstance(loss, AT_ONCE)])
@pytest.mark.parametrize("n, d", [(6, 4), (4, 9), (3, 100)])
@pytest.mark.parametrize("count", [3, 4])
def test_loss_of_several_views_is_the_mean_over_their_pairs(name, n, d, count):
    loss, z = SEVERAL[name], several(count, n, d)
    found = loss.terms(*z)
    pairs = [loss.terms(x, y) for x, y in combinations(z, 2)]
    for term, value in found.items():
        torch.testing.assert_close(value, sum(one[term] for one in pairs) / len(pairs), rtol=1e-11, atol=1e-12)
    expected = sum(sum(one.values()) for one in pairs) / len(pairs)
    for ours, theirs in zip(*(torch.autograd.grad(v, z) for v in (sum(found.values()), expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SEVERAL)
def test_order_of_the_views_does_not_matter(name):
    loss, z = SEVERAL[name], several(3)
    value, expected = loss(*z), torch.autograd.grad(loss(*z), z)
    for order in permutations(range(3)):
        other = loss(*(z[i] for i in order))
        torch.testing.assert_close(other, value, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(other, z), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [name for name, loss in SEVERAL.items() if not isinstance(loss, SupConLoss)])
def test_identical_views_have_the_loss_of_two_identical_views(name):
    loss, z = SEVERAL[name], data(8, 4)
    torch.testing.assert_close(loss(z, z, z, z), loss(z, z), rtol=1e-11, atol=1e-12)
    if isinstance(loss, VICRegLoss) and loss.contrast == "dimensions":  # the bound: 0 but for eps
        white = np.sqrt(7) * torch.linalg.qr(torch.cat([torch.ones(8, 1).double(), data(8, 4)], dim=1))[0][:, 1:]
        assert float(loss(white, white, white)) == pytest.approx(loss.lower_bound(8, 4), abs=2e-3)


def test_constant_projections_of_several_views_have_a_finite_gradient():
    for loss in SEVERAL.values():
        z = [torch.full((8, 3), 0.1, requires_grad=True) for _ in range(3)]
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss(*z), z)), loss


@pytest.mark.parametrize("name", SEVERAL)
def test_derivatives_of_several_views_match_finite_differences(name):
    loss, z = SEVERAL[name], several(3, 4, 3)
    assert torch.autograd.gradcheck(loss, z, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, z, fast_mode=True)
    found = torch.func.grad(lambda *views: loss(*views), (0, 1, 2))(*(view.detach() for view in z))
    torch.testing.assert_close(found, torch.autograd.grad(loss(*z), z), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SEVERAL)
def test_autocast_changes_neither_value_nor_gradient_of_several_views(name):
    loss, z = SEVERAL[name], several(3, 64, 16, torch.float32)
    expected = loss(*z)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*z)
        found = torch.autograd.grad(value, z)
    assert torch.equal(value, expected)
    for ours, theirs in zip(found, torch.autograd.grad(expected, z), strict=True):
        assert torch.equal(ours, theirs) and theirs.norm() > 0


@pytest.mark.parametrize("name", ["barlow", "nt_xent"])
def test_several_views_compile_into_one_graph(name):
    loss, z = SEVERAL[name], several(3, dtype=torch.float32)
    torch._dynamo.reset()
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(*z)
    torch.testing.assert_close(value, loss(*z))
    for ours, expected in zip(*(torch.autograd.grad(v, z) for v in (value, loss(*z))), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_third_view_is_checked_like_the_others():
    z = data(4, 3)
    with pytest.raises(ValueError, match=r"z_a and view 3 must have the same shape, got \(4, 3\) and \(4, 2\)"):
        LOSSES["barlow"][0](z, z, data(4, 2))


WAYS = {
    "torch.func.grad": lambda loss, a, b, v: torch.func.grad(loss, (0, 1))(a, b),
    "jacrev": lambda loss, a, b, v: torch.func.jacrev(loss, (0, 1))(a, b),
    "jacfwd": lambda loss, a, b, v: torch.func.jacfwd(loss, (0, 1))(a, b),
    "hessian": lambda loss, a, b, v: (torch.einsum("ijkl,kl", torch.func.hessian(loss)(a, b), v),),
    "forward over reverse": lambda loss, a, b, v: (
        torch.func.jvp(lambda z: torch.func.grad(loss)(z, b), (a,), (v,))[1],
    ),
    "vmap of values": lambda loss, a, b, v: torch.vmap(loss, (0, None))(torch.stack([a, b]), b),
    "vmap of gradients": lambda loss, a, b, v: torch.vmap(torch.func.grad(loss), (0, None))(torch.stack([a, v]), b),
    "forward mode": lambda loss, a, b, v: (forward_mode(loss, a, b, v),),
}


def forward_mode(loss, a, b, v):
    with fwd.dual_level():
        return fwd.unpack_dual(loss(fwd.make_dual(a, v), b)).tangent


def by_plain_autograd(way, loss, a, b, v):
    if way in ("hessian", "forward over reverse"):
        return (hessian_product(loss, a, b, v),)
    if way.startswith("vmap"):
        return [loss(z, b) for z in (a, b)] if way.endswith("values") else [gradients(loss, z, b)[0] for z in (a, v)]
    found = gradients(loss, a, b)
    return ((found[0] * v).sum(),) if way == "forward mode" else found


@every_loss
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_differentiate_agrees_with_autograd(name, way):
    loss, (z_a, z_b), v = LOSSES[name][0], views(6, 4), data(6, 4, 7)
    found = WAYS[way](loss, z_a, z_b, v)
    for ours, expected in zip(found, by_plain_autograd(way, loss, z_a, z_b, v), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("make", [HSICSSLLoss, VICRegLoss, SpectralContrastiveLoss])
@pytest.mark.parametrize("options", [{}, {"contrast": "samples"}], ids=str)
@pytest.mark.parametrize("route", ["primal", "dual"])
def test_every_route_is_differentiable_in_every_way(make, options, route):
    if options and make is SpectralContrastiveLoss:
        return
    loss, (z_a, z_b), v = make(route=route, **options), views(6, 4), data(6, 4, 7)
    inputs = z_a.clone().requires_grad_(), z_b.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs) and torch.autograd.gradgradcheck(loss, inputs)
    for way, call in WAYS.items():
        for ours, expected in zip(call(loss, z_a, z_b, v), by_plain_autograd(way, loss, z_a, z_b, v), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10, msg=way)


@pytest.mark.parametrize("kernel", NAMED)
@pytest.mark.parametrize("way", WAYS)
def test_kernels_with_a_bandwidth_rule_are_differentiable_in_every_way(kernel, way):
    loss, (z_a, z_b), v = SSLHSICLoss(kernel), views(6, 4), data(6, 4, 7)
    if kernel == "laplace" and way in ("jacfwd", "hessian", "forward over reverse", "forward mode"):
        with pytest.raises(NotImplementedError, match="cdist"):
            WAYS[way](loss, z_a, z_b, v)
        with pytest.raises(NotImplementedError, match="cdist"):
            hessian_product(loss, z_a, z_b, v)
        return
    for ours, expected in zip(WAYS[way](loss, z_a, z_b, v), by_plain_autograd(way, loss, z_a, z_b, v), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


@every_loss
def test_order_of_the_rows_does_not_matter(name):
    loss, (z_a, z_b) = LOSSES[name][0], views()
    rows = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(z_a[rows], z_b[rows]), loss(z_a, z_b))
    for permuted, plain in zip(gradients(loss, z_a[rows], z_b[rows]), gradients(loss, z_a, z_b), strict=True):
        torch.testing.assert_close(permuted, plain[rows])


@losses_with("features")
def test_order_of_the_features_does_not_matter(name):
    loss, (z_a, z_b) = LOSSES[name][0], views()
    columns = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(loss(z_a[:, columns], z_b[:, columns]), loss(z_a, z_b))


@losses_with("duplicate")
def test_duplicated_batch_has_the_same_loss(name):
    loss, (z_a, z_b) = LOSSES[name][0], views()
    torch.testing.assert_close(loss(z_a.repeat(3, 1), z_b.repeat(3, 1)), loss(z_a, z_b))


@losses_with("affine")
@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e-3, 1e3, 1e6])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_scale_and_offset_of_each_feature_do_not_matter(name, scale, dtype, tolerance):
    # An absolute epsilon, rows of unit length, or joint standardization of both views would break this.
    loss, (z_a, z_b) = LOSSES[name][0], views(64, 16, dtype=dtype)
    shift = scale * data(1, 16, 9, dtype)
    scales = scale * data(1, 16, 8, dtype).exp()
    torch.testing.assert_close(loss(z_a, scales * z_b + shift), loss(z_a, z_b), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(loss(scales * z_a + shift, z_b), loss(z_a, z_b), rtol=tolerance, atol=tolerance)
    plain, scaled = gradients(loss, z_a, z_b)[0], gradients(loss, scales * z_a + shift, z_b)[0]
    torch.testing.assert_close(scaled * scales, plain, rtol=100 * tolerance, atol=tolerance)


@losses_with("offset")
def test_offset_of_ten_thousand_keeps_float32_accurate(name):
    loss, (z_a, z_b) = LOSSES[name][0], views(256, 8, dtype=torch.float32)
    z_a, z_b = z_a + 1e4, z_b + 1e4
    torch.testing.assert_close(loss(z_a, z_b).double(), loss(z_a.double(), z_b.double()), rtol=1e-3, atol=1e-3)


@losses_with("lengths")
def test_length_of_the_rows_does_not_matter(name):
    loss, (z_a, z_b) = LOSSES[name][0], views()
    lengths = torch.logspace(-6, 6, 16, dtype=torch.float64)[:, None]
    torch.testing.assert_close(loss(lengths * z_a, z_b), loss(z_a, z_b))


@every_loss
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_constant_feature_has_finite_value_and_gradient(name, value):
    loss, (z_a, z_b) = LOSSES[name][0], views(dtype=torch.float32)
    z_a[:, 2] = value
    assert loss(z_a, z_b).isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(loss, z_a, z_b))


@every_loss
def test_collapsed_views_have_finite_value_and_gradient(name):
    loss = LOSSES[name][0]
    for z in (torch.full((8, 3), 0.1), torch.zeros(8, 3)):
        assert loss(z, z).isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients(loss, z, z))


@every_loss
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 3])
def test_nan_or_infinity_makes_the_loss_not_finite(name, bad, row):
    loss, (z_a, z_b) = LOSSES[name][0], views()
    z_a[row, 1] = bad
    assert not loss(z_a, z_b).isfinite()


@pytest.mark.parametrize("kernel", NAMED)
@pytest.mark.parametrize("more", [{}, {"standardized": True}, {"random_features": 8}], ids=str)
def test_nan_reaches_ssl_hsic_past_the_median_rule(kernel, more):
    if kernel == "linear" and "random_features" in more:
        pytest.skip("a linear kernel has no random features")
    z_a, z_b = views()
    z_a[2, 1] = float("nan")
    assert SSLHSICLoss(kernel, **more)(z_a, z_b).isnan()


@every_loss
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("noise", [0.5, 0.01])
def test_autocast_changes_neither_value_nor_gradient(name, autocast, noise):
    # If C were computed in bfloat16, a diagonal of 1 - 1e-4 would round to 1, and its gradient would vanish.
    loss = LOSSES[name][0]
    z_a, z_b = (z.requires_grad_() for z in views(256, 16, dtype=torch.float32, noise=noise))
    expected = loss(z_a, z_b)
    expected_gradients = torch.autograd.grad(expected, (z_a, z_b))
    with torch.autocast("cpu", autocast):
        value = loss(z_a, z_b)
        inside = torch.autograd.grad(value, (z_a, z_b), retain_graph=True)
    assert value.dtype == torch.float32 and torch.equal(value, expected)
    for ours, inner, theirs in zip(torch.autograd.grad(value, (z_a, z_b)), inside, expected_gradients, strict=True):
        assert torch.equal(ours, theirs) and theirs.norm() > 0
        assert torch.equal(inner, theirs)


@every_loss
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_give_the_float32_loss(name, half):
    loss, (z_a, z_b) = LOSSES[name][0], (z.to(half) for z in views())
    assert torch.equal(loss(z_a, z_b), loss(z_a.float(), z_b.float()))
    assert gradients(loss, z_a, z_b)[0].dtype == half


@every_loss
@pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16])
def test_views_of_two_dtypes_are_computed_in_the_wider_one(name, narrow):
    loss, (z_a, z_b) = LOSSES[name][0], views()
    z_b = z_b.to(narrow)
    assert torch.equal(loss(z_a, z_b), loss(z_a, z_b.double()))
    assert [gradient.dtype for gradient in gradients(loss, z_a, z_b)] == [torch.float64, narrow]


@every_loss
def test_inputs_are_not_modified(name):
    loss, (z_a, z_b) = LOSSES[name][0], views()
    before = z_a.clone(), z_b.clone()
    gradients(loss, z_a, z_b)
    loss(z_a.requires_grad_(), z_b.requires_grad_()).backward()
    assert torch.equal(z_a, before[0]) and torch.equal(z_b, before[1])


@every_loss
@pytest.mark.parametrize(
    "z_a, z_b, error, message",
    [
        (torch.zeros(0, 3), torch.zeros(0, 3), ValueError, r"at least \d rows?, got shape \(0, 3\)"),
        (torch.zeros(4, 3), torch.zeros(4, 2), ValueError, r"same shape, got \(4, 3\) and \(4, 2\)"),
        (torch.zeros(4), torch.zeros(4), ValueError, r"z_a must have shape \(n, d\), got \(4,\)"),
        (torch.zeros(4, 3), torch.zeros(4, 3).int(), TypeError, "z_b must be floating point, got torch.int32"),
        (np.zeros((4, 3)), torch.zeros(4, 3), TypeError, "z_a .* got ndarray; torch.as_tensor makes one"),
        (torch.zeros(4, 3), torch.zeros(4, 3, device="meta"), ValueError, "one device, got cpu and meta"),
    ],
)
def test_views_that_are_not_accepted_are_quoted(name, z_a, z_b, error, message):
    with pytest.raises(error, match=message):
        LOSSES[name][0](z_a, z_b)


@every_loss
def test_single_row_is_a_batch_only_of_losses_of_single_rows(name):
    loss, z = LOSSES[name][0], data(1, 3)
    if isinstance(loss, NTXentLoss | SupConLoss | NegativeCosineSimilarity):
        expected = -1.0 if isinstance(loss, NegativeCosineSimilarity) else 0.0  # the only other projection is its own
        assert float(loss(z, 2 * z)) == pytest.approx(expected, abs=1e-12)
    else:
        with pytest.raises(ValueError, match=r"at least 2 rows, got shape \(1, 3\)"):
            loss(z, z)


def weighted(z, kind, scale):
    """The views with features, images or entries that are `scale` times as large as the others."""
    n, d = z[0].shape
    weights = torch.ones(n, d, dtype=torch.float64)
    if kind == "feature":
        weights[:, 3] = scale
    elif kind == "image":
        weights[5] = scale
    elif kind == "first image":
        weights[0] = scale
    elif kind == "entry":
        weights[5, 3] = scale
    elif kind == "entries":
        weights[range(6), range(6)] = scale * torch.arange(1.0, 7.0).double()
    elif kind == "entry of each feature":
        weights[data(n, d, 5).argmax(dim=0), range(d)] = scale
    elif kind == "log-normal features":
        weights = (data(1, d, 5)[0] * np.log(scale) / 4).exp()
    return [(weights * view).float() for view in z]


KINDS = ("feature", "image", "first image", "entry", "entries", "entry of each feature", "log-normal features")
SCALED = {
    f"{make.__name__} {route} {options}": make(route=route, **options)
    for make, options in [
        (VICRegLoss, {}),
        (VICRegLoss, {"contrast": "samples"}),
        (HSICSSLLoss, {}),
        (HSICSSLLoss, {"contrast": "samples"}),
        (SpectralContrastiveLoss, {"mu": 1e12}),
    ]
    for route in ("primal", "dual", "auto")
} | {name: loss for name, (loss, _, _) in LOSSES.items() if "linear" in name or "reference" in name}


@pytest.mark.parametrize("n, d", [(64, 300), (300, 64)])
@pytest.mark.parametrize("name", SCALED)
def test_float32_keeps_its_digits_where_some_values_dominate(name, n, d):
    for kind in KINDS:
        for scale in (1e2, 1e4, 1e6):
            z_a, z_b = weighted(views(n, d), kind, scale)
            found, expected = SCALED[name].terms(z_a, z_b), SCALED[name].terms(z_a.double(), z_b.double())
            for term, value in expected.items():
                assert float(found[term]) == pytest.approx(float(value), rel=1e-4, abs=1e-9), (kind, scale, term)


@pytest.mark.parametrize("n, d", [(64, 300), (300, 64)])
@pytest.mark.parametrize("route", ["primal", "dual"])
@pytest.mark.parametrize("contrast", ["dimensions", "samples"])
def test_covariance_of_dominated_features_matches_brute_force(n, d, route, contrast):
    for kind in KINDS:
        for scale in (1e2, 1e4):
            z_a, z_b = weighted(views(n, d), kind, scale)
            loss = VICRegLoss(0, 0, 1, route=route, contrast=contrast)
            x, y = (z.double().numpy() - z.double().numpy().mean(axis=0) for z in (z_a, z_b))
            products = [z @ z.T if contrast == "samples" else z.T @ z for z in (x, y)]
            expected = sum(np.square(off(p)).sum() for p in products) / (n - 1) ** 2 / d
            assert float(loss(z_a, z_b)) == pytest.approx(expected, rel=1e-5), (kind, scale)
            z = z_a.clone().requires_grad_()
            (found,) = torch.autograd.grad(loss(z, z_b), z)
            by_product = products[0] - np.diag(np.diag(products[0]))
            expected = 4 / (n - 1) ** 2 / d * (by_product @ x if contrast == "samples" else x @ by_product)
            expected = expected - expected.mean(axis=0)
            error = np.linalg.norm(found.double().numpy() - expected, axis=0) / np.linalg.norm(expected, axis=0)
            assert error.max() < 3e-3, (kind, scale)


COMPILED = {name: loss for name, (loss, _, _) in LOSSES.items()} | {name: SSLHSICLoss(name) for name in NAMED}


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_into_one_graph(name):
    loss, (z_a, z_b) = COMPILED[name], (z.requires_grad_() for z in views(dtype=torch.float32))
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        value = compiled(z_a, z_b)
        found = torch.autograd.grad(value, (z_a, z_b))
    torch.testing.assert_close(value, loss(z_a, z_b))
    for ours, expected in zip(found, gradients(loss, z_a.detach(), z_b.detach()), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_compiled_loss_refuses_a_second_derivative():
    z_a, z_b = (z.requires_grad_() for z in views())
    torch._dynamo.reset()
    value = torch.compile(LOSSES["barlow"][0], fullgraph=True, backend="aot_eager")(z_a, z_b)
    (first,) = torch.autograd.grad(value, z_a, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        first.sum().backward()


@pytest.mark.parametrize("name, option", [
    ("BarlowTwinsLoss", "lambda_param"), ("HSICSSLLoss", "off_diagonal_target"), ("ReferenceCodeLoss", "lambda_param"),
    ("ReferenceCodeLoss", "off_diagonal_target"), ("VICRegLoss", "nu_param"), ("VICRegLoss", "eps"),
    ("NTXentLoss", "temperature"), ("SupConLoss", "temperature"),
    ("SSLHSICLoss", "gamma"), ("SIGRegLoss", "lambda_param"),
])  # fmt: skip
def test_numbers_of_numpy_and_torch_are_those_of_python(name, option):
    kind = getattr(losses, name)
    expected = kind(**{option: 0.25})
    for number in (np.array(0.25), np.float32(0.25), torch.tensor(0.25)):
        loss = kind(**{option: number})
        assert repr(loss) == repr(expected) and isinstance(getattr(loss, option), float)
        assert torch.equal(loss(*views(8, 4)), expected(*views(8, 4)))


@every_loss
def test_gradient_of_a_checkpointed_loss_is_the_same(name):
    loss, (z_a, z_b) = LOSSES[name][0], views()
    if getattr(loss, "_generator", None) is not None:
        pytest.skip("it draws again")

    def checkpointed(z_a, z_b):
        return checkpoint(loss, z_a, z_b, use_reentrant=False)

    torch.testing.assert_close(gradients(checkpointed, z_a, z_b), gradients(loss, z_a, z_b), rtol=1e-12, atol=1e-14)


@pytest.fixture
def nothing_compiled():
    torch._dynamo.reset()


@pytest.mark.usefixtures("nothing_compiled")
def test_several_targets_compile_in_one_process():
    z = [z.requires_grad_() for z in views()]
    for target in (-1.0, -0.5, -0.25):
        loss = HSICSSLLoss(off_diagonal_target=target)
        for dynamic in (None, True):
            compiled = torch.compile(loss, dynamic=dynamic, backend="aot_eager")
            torch.testing.assert_close(compiled(*z), loss(*z), rtol=1e-12, atol=0)


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("route", ["primal", "dual"])
def test_compiled_loss_needs_no_gradient(route):
    loss, z = HSICSSLLoss(route=route), views()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*z), loss(*z), rtol=1e-12, atol=0)
    torch.testing.assert_close(compiled(*z), loss(*z), rtol=1e-12, atol=0)


@pytest.mark.usefixtures("nothing_compiled")
def test_compiled_dual_route_takes_many_batch_sizes():
    loss = HSICSSLLoss(route="dual")
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for n in range(20, 32):  # the tenth guard on a number of rows would be an error
        z = [z.requires_grad_() for z in views(n, 40)]
        torch.testing.assert_close(compiled(*z), loss(*z), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "loss", [SSLHSICLoss(standardized=True), HSICSSLLoss(contrast="samples"), ReferenceCodeLoss(), HSICSSLLoss()]
)
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_tiny_column_has_its_gradient(loss, create_graph):
    scale = torch.ones(5).index_fill(0, torch.tensor([2]), 1e-13)
    z_a, z_b = (z.float() * scale for z in views(64, 5))
    x, y = z_a.clone().requires_grad_(), z_a.double().requires_grad_()
    (found,) = torch.autograd.grad(loss(x, z_b), x, create_graph=create_graph)
    (exact,) = torch.autograd.grad(loss(y, z_b.double()), y)
    torch.testing.assert_close((found * scale).double(), exact * scale, rtol=1e-4, atol=1e-6)


def test_learnable_bandwidths_are_parameters_of_the_loss():
    bandwidths = [torch.nn.Parameter(torch.tensor(value)) for value in (0.5, 2.0)]
    loss = SSLHSICLoss(Gaussian(bandwidths[0]) * Gaussian() + Laplace(bandwidths[1]))
    assert [id(one) for one in loss.parameters()] == [id(one) for one in bandwidths]
    loss(*(z.float() for z in views())).backward()
    assert all(one.grad for one in loss.parameters())
    other = copy.deepcopy(loss)
    with torch.no_grad():
        other.bandwidth_0.fill_(3.0)
    assert other.kernel.first.first.bandwidth == 3 and loss.kernel.first.first.bandwidth == 0.5


def test_state_of_another_kind_of_loss_is_refused():
    state = SIGRegLoss(slices=4).state_dict()
    for loss, other in ((SIGRegLoss(), state), (SIGRegLoss(slices=4), SIGRegLoss().state_dict())):
        with pytest.raises(ValueError, match=r"SIGRegLoss\(.*\) draws at random and the loss of this state"):
            loss.load_state_dict(other)
    other, drawn = SIGRegLoss(slices=4, seed=1), SIGRegLoss(slices=4)
    other.load_state_dict({name: value.float() for name, value in state.items()})  # as a cast of all tensors leaves it
    assert other(*views()) == drawn(*views())


def test_spectral_loss_of_rows_that_overflow_is_nan():
    assert SpectralContrastiveLoss()(*(1e25 * z.float() for z in views())).isnan()


@pytest.mark.parametrize("name", LOSSES)
def test_meta_tensors_have_a_loss_without_values(name):
    z = torch.empty(8, 4, device="meta", requires_grad=True)
    value = LOSSES[name][0](z, z)
    value.backward()
    assert value.is_meta and value.shape == () and z.grad.shape == (8, 4)


def test_transforms_do_not_reach_other_processes(monkeypatch):
    monkeypatch.setattr("hsic_lab.losses._base.world_size", lambda: 2)
    z_a, z_b = views()
    with pytest.raises(NotImplementedError, match="take gather_distributed=False"):
        torch.func.grad(HSICSSLLoss())(z_a, z_b)
    assert torch.func.grad(HSICSSLLoss(gather_distributed=False))(z_a, z_b).isfinite().all()


def test_losses_of_parts_of_a_batch_are_not_the_loss_of_the_batch():
    loss, (z_a, z_b) = BarlowTwinsLoss(), views(64, 5)
    parts = [loss(a, b) for a, b in zip(z_a.chunk(4), z_b.chunk(4), strict=True)]
    assert abs(float(sum(parts) / 4 - loss(z_a, z_b))) > 0.01 * float(loss(z_a, z_b))


@pytest.mark.parametrize("loss", [SIGRegLoss(slices=4), SSLHSICLoss(random_features=4)])
def test_checkpointing_draws_anew(loss):
    (z_a, z_b), state = views(), loss.state_dict()
    plain = gradients(loss, z_a, z_b)
    loss.load_state_dict(state)
    again = gradients(lambda *z: checkpoint(loss, *z, use_reentrant=False), z_a, z_b)
    assert not torch.allclose(plain[0], again[0], rtol=0.01)
