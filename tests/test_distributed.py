"""Several processes compute the loss and the gradient of one, with gloo and different numbers of rows."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from losses_table import LOSSES, data

from hsic_lab._distributed import all_gather_rows
from hsic_lab.losses import SupConLoss


def supervised(z_a, z_b):
    return SupConLoss()(z_a, z_b, labels=(z_a[:, 0] > 0).long())


CALLS = {name: loss for name, (loss, _, _) in LOSSES.items()} | {"supcon with labels": supervised}
ROWS = {2: (5, 8), 3: (3, 1, 9)}
DEPTH, WIDTH = 6, 4


def batch(n):
    return data(n, DEPTH, 1), data(n, DEPTH, 2), data(n, DEPTH, 5)


def model():
    linear = torch.nn.Linear(DEPTH, WIDTH).double()
    with torch.no_grad():
        linear.weight.copy_(data(WIDTH, DEPTH, 3))
        linear.bias.copy_(data(1, WIDTH, 4)[0])
    return linear


def step(network, loss, *views):
    """The loss of one batch and the gradient of the parameters, which all views share."""
    network.zero_grad()
    value = loss(*network(torch.cat(views)).split(len(views[0])))
    value.backward()
    return value.detach(), [parameter.grad.clone() for parameter in network.parameters()]


def penalty(loss, *views):
    """The gradient of a gradient penalty: a second derivative of the loss."""
    network, views = model(), [view.clone().requires_grad_() for view in views]
    gradients = torch.autograd.grad(loss(*(network(view).tanh() for view in views)), views, create_graph=True)
    return torch.autograd.grad(sum(one.square().sum() for one in gradients), network.weight)[0]


def run_processes(rank, folder):
    torch.set_num_threads(1)
    for world_size, rows in ROWS.items():
        if rank >= world_size:
            continue
        dist.init_process_group("gloo", f"file://{folder}/store{world_size}", rank=rank, world_size=world_size)
        start = sum(rows[:rank])
        a, b, c = (x[start : start + rows[rank]] for x in batch(sum(rows)))
        network = torch.nn.parallel.DistributedDataParallel(model())
        found = {name: step(network, loss, a, b) for name, loss in CALLS.items()}
        found |= {f"{name}, 3 views": step(network, loss, a, b, c) for name, (loss, _, _) in LOSSES.items()}
        penalties = {name: penalty(loss, a, b) for name, loss in CALLS.items()}
        for gradient in penalties.values():
            dist.all_reduce(gradient)
        parts = {"losses": found, "penalties": penalties, "rows": all_gather_rows(a)}
        torch.save(parts, f"{folder}/{world_size}_{rank}.pt")
        del network
        dist.barrier()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(run_processes, args=(str(folder),), nprocs=max(ROWS))
    return folder


@pytest.mark.parametrize("world_size, rank", [(k, rank) for k in ROWS for rank in range(k)])
def test_processes_give_loss_and_gradient_of_one(folder, world_size, rank):
    found = torch.load(folder / f"{world_size}_{rank}.pt")
    a, b, c = batch(sum(ROWS[world_size]))
    assert torch.equal(found["rows"], a)
    for name, loss in CALLS.items():
        expected = step(model(), loss, a, b)
        torch.testing.assert_close(found["losses"][name], expected, rtol=1e-10, atol=1e-10, msg=name)
        # The gradients of the views are k-fold, as DistributedDataParallel expects them, and their squares k^2-fold.
        expected = world_size**2 * penalty(loss, a, b)
        torch.testing.assert_close(found["penalties"][name], expected, rtol=1e-9, atol=1e-9, msg=f"penalty, {name}")
    for name, (loss, _, _) in LOSSES.items():
        expected = step(model(), loss, a, b, c)
        torch.testing.assert_close(found["losses"][f"{name}, 3 views"], expected, rtol=1e-10, atol=1e-10, msg=name)


def test_one_process_returns_its_own_rows():
    z = data(3, 2)
    assert all_gather_rows(z) is z
