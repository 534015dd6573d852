"""The gradient computed in parts is that of the whole batch for every loss; batch normalization is as documented."""

import pytest
import torch

from hsic_lab.training import LOSSES, TrainConfig
from hsic_lab.training._setup import (
    OnlineNetwork,
    TargetNetwork,
    join_views,
    loss_terms,
    make_loss,
    make_predictor,
    split_views,
)
from hsic_lab.training._trainer import backward_in_parts

N, SIDE, D = 13, 6, 4


def images(seed):
    return torch.randn(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(config, norm=False, seed=0):
    torch.manual_seed(seed)
    encoder = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3),
        torch.nn.BatchNorm2d(5) if norm else torch.nn.Identity(),
        torch.nn.Tanh(),
        torch.nn.Flatten(),
        torch.nn.Linear(5 * 16, 7),
    )
    predictor = torch.nn.Sequential(torch.nn.Linear(D, 6), torch.nn.Tanh(), torch.nn.Linear(6, D))
    return OnlineNetwork(encoder, torch.nn.Linear(7, D), predictor if config.predictor else None).double()


def gradient(config, size, norm=False, count=2):
    online = network(config, norm)
    target = TargetNetwork(network(config, norm, seed=5), 0.9) if config.target == "momentum" else None
    parts = split_views([images(1 + view) for view in range(count)], [len(part) for part in images(1).split(size)])
    loss = make_loss(config)

    def forward(i):
        p, z = online(*parts[i])
        return (p, z, target(*parts[i])) if target else (p, z)

    totals = []

    def value(outputs):
        columns = [join_views(column, count) for column in zip(*outputs, strict=True)]
        totals.append(sum(loss_terms(loss, config, columns[0], columns[-1]).values()))
        return totals[-1]

    if size >= N:
        value([forward(0)]).backward()
    else:
        backward_in_parts(online, forward, len(parts), value)
    return totals[-1].detach(), {name: p.grad for name, p in online.named_parameters()}, dict(online.named_buffers())


TARGETS = [((), "same"), ((6,), "same"), ((), "stop_gradient"), ((6,), "stop_gradient"), ((6,), "momentum")]


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("predictor, target", TARGETS)
@pytest.mark.parametrize("count", [2, 3])
def test_parts_give_loss_and_gradient_of_the_whole_batch(loss, predictor, target, count):
    config = TrainConfig(loss=loss, predictor=predictor, target=target, loss_scale=0.1)
    whole, expected, _ = gradient(config, N, count=count)
    assert max(g.abs().max() for g in expected.values()) > 1e-6
    for size in (5, 1):
        value, found, _ = gradient(config, size, count=count)
        torch.testing.assert_close(value, whole, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_batch_normalization_tracks_each_part_once():
    config = TrainConfig()
    _, _, buffers = gradient(config, 5, norm=True)
    reference = network(config, norm=True)
    with torch.no_grad():
        for a, b in zip(images(1).split(5), images(2).split(5), strict=True):
            reference(torch.cat([a, b]))
    torch.testing.assert_close(buffers, dict(reference.named_buffers()))
    assert buffers["encoder.1.num_batches_tracked"] == 3


def test_loss_terms_match_the_formula():
    config = TrainConfig(loss="negative_cosine", predictor=(6,), target="stop_gradient", projector=(D,))
    loss = make_loss(config)
    p, t = ([torch.randn(N, D, requires_grad=True) for _ in "ab"] for _ in "pt")
    value = sum(loss_terms(loss, config, p, t).values())
    torch.testing.assert_close(value, (loss(p[0], t[1]) + loss(p[1], t[0])) / 2)
    value.backward()
    assert all(x.grad is None for x in t) and all(x.grad is not None for x in p)
    p, t = ([torch.randn(N, D) for _ in "abc"] for _ in "pt")
    expected = sum(loss(p[v], t[w]) for v in range(3) for w in range(3) if v != w) / 6
    torch.testing.assert_close(sum(loss_terms(loss, config, p, t).values()), expected)
    assert make_predictor(config)(p[0]).shape == (N, D)


def test_target_network_follows_and_stops_at_the_end():
    config = TrainConfig(target="momentum")
    online, other = network(config), network(config, seed=5)
    target = TargetNetwork(other, 0.9)
    before = target.projector.weight.clone()
    target.ema_update(online, 0.0)
    torch.testing.assert_close(target.projector.weight, 0.9 * before + 0.1 * online.projector.weight)
    after = target.projector.weight.clone()
    target.ema_update(online, 1.0)
    assert torch.equal(target.projector.weight, after)
    assert not torch.equal(other.projector.weight, after), "the target is a copy"
