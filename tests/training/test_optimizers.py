"""LARS against NumPy, the parameter groups of every optimizer, and the learning rate by step."""

import numpy as np
import pytest
import torch

from hsic_lab.encoders import MLPProjector
from hsic_lab.training import TrainConfig
from hsic_lab.training._setup import LARS, make_optimizer, set_learning_rate


def lars_oracle(w, gradients, lr, momentum, decay, trust, adapt, clip):
    """The update of facebookresearch/barlowtwins, parameter by parameter; `clip` as in vturrisi/solo-learn."""
    m = np.zeros_like(w)
    for g in gradients:
        u = g + decay * w
        norm, update_norm = np.linalg.norm(w), np.linalg.norm(u)
        if adapt and norm > 0 and update_norm > 0:
            u = u * (min(trust * norm / update_norm / lr, 1) if clip else trust * norm / update_norm)
        m = momentum * m + u
        w = w - lr * m
    return w


@pytest.mark.parametrize(("adapt", "trust", "clip"), [(True, 0.02, False), (False, 0.02, False), (True, 0.3, True)])
@pytest.mark.parametrize("start", [1.0, 0.0], ids=["weights", "zero weights"])
def test_lars_matches_the_formula(adapt, trust, clip, start):
    rng = np.random.default_rng(0)
    weights = [start * rng.normal(size=shape) for shape in ((3, 4), (5,), (2, 3, 2, 2))]
    gradients = [[rng.normal(size=w.shape) for w in weights] for _ in range(3)]
    gradients[1][0] *= 0
    parameters = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    unused = torch.nn.Parameter(torch.ones(2))
    optimizer = LARS([*parameters, unused], 0.3, 0.9, 0.01, trust, adapt, clip)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
    for i, parameter in enumerate(parameters):
        expected = lars_oracle(weights[i], [step[i] for step in gradients], 0.3, 0.9, 0.01, trust, adapt, clip)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(unused, torch.ones(2))


NETWORK = MLPProjector([6, 8, 4])


@pytest.mark.parametrize(
    ("changes", "kind", "groups"),
    [
        ({}, torch.optim.AdamW, [(4, 4e-3, 1e-4)]),
        ({"optimizer": "adam"}, torch.optim.Adam, [(4, 4e-3, 1e-4)]),
        ({"optimizer": "sgd"}, torch.optim.SGD, [(4, 4e-3, 1e-4)]),
        ({"optimizer": "sgd", "bias_learning_rate": 0.5}, torch.optim.SGD, [(2, 4e-3, 1e-4), (2, 0.5, 1e-4)]),
        ({"optimizer": "lars"}, LARS, [(2, 4e-3, 1e-4), (2, 4e-3, 0.0)]),
        ({"optimizer": "lars", "trust_clip": True}, LARS, [(2, 4e-3, 1e-4), (2, 4e-3, 0.0)]),
        ({"optimizer": "lars", "bias_learning_rate": 0.5}, LARS, [(2, 4e-3, 1e-4), (2, 0.5, 0.0)]),
    ],
)
def test_optimizer_has_the_groups_of_its_settings(changes, kind, groups):
    optimizer = make_optimizer(TrainConfig(**changes), NETWORK)
    assert type(optimizer) is kind
    assert [(len(g["params"]), g["peak"], g["weight_decay"]) for g in optimizer.param_groups] == groups
    if kind is LARS:
        assert all(g["clip"] == changes.get("trust_clip", False) for g in optimizer.param_groups)
        assert [g["adapt"] for g in optimizer.param_groups] == [True, False]
        assert all(p.ndim == 1 for p in optimizer.param_groups[1]["params"])


def test_every_parameter_is_in_one_group():
    weights, vectors = (g["params"] for g in make_optimizer(TrainConfig(optimizer="lars"), NETWORK).param_groups)
    assert sorted(map(id, [*weights, *vectors])) == sorted(map(id, NETWORK.parameters()))
    assert all(p.ndim > 1 for p in weights) and all(p.ndim == 1 for p in vectors)


@pytest.mark.parametrize(("schedule", "final", "last"), [("cosine", 0, 0), ("cosine", 0.1, 0.1), ("constant", 0, 1)])
def test_the_rate_of_every_group_follows_the_schedule(schedule, final, last):
    config = TrainConfig(
        optimizer="lars",
        learning_rate=2.0,
        bias_learning_rate=0.5,
        schedule=schedule,
        final_learning_rate=final,
        epochs=10,
        warmup_epochs=1,
    )
    optimizer = make_optimizer(config, NETWORK)
    rates = []
    for step in range(101):
        set_learning_rate(optimizer, config, step, 10)
        rates.append([group["lr"] for group in optimizer.param_groups])
    rates = np.array(rates)
    np.testing.assert_allclose(rates[:, 0], 4 * rates[:, 1])
    np.testing.assert_allclose(rates[:11, 0], 2 * np.arange(1, 12) / 11)
    np.testing.assert_allclose(rates[-1, 0], 2 * last, atol=1e-12)
    assert (np.diff(rates[10:, 0]) <= 0).all()


def test_warmup_and_cosine():
    config, rates = TrainConfig(epochs=5, warmup_epochs=1, learning_rate=1.0), []
    optimizer = make_optimizer(config, NETWORK)
    for step in range(21):
        set_learning_rate(optimizer, config, step, steps_per_epoch=4)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[12] == pytest.approx(0.5)
    assert rates[20] == pytest.approx(0, abs=1e-12)
