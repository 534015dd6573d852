"""`hsic_lab.hsic` and `hsic_lab.cka` are modules and can be called like their functions."""

import inspect
import pickle
import subprocess
import sys

import pytest
import torch

import hsic_lab

# Runs in one process: hsic_lab is imported anew for every order of the statements.
EVERY_ORDER = """
import itertools, sys, torch
x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
statements = [
    "import hsic_lab.{name}",
    "from hsic_lab import {other}, {name} as module",
    "from hsic_lab.{name} import {name} as function",
]
orders = 0
for name, other in (("hsic", "cka"), ("cka", "hsic")):
    for order in itertools.permutations(statements):
        for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == "hsic_lab"]:
            del sys.modules[loaded]
        names = {}
        for statement in order:
            exec(statement.format(name=name, other=other), names)
        package, function = names["hsic_lab"], names["function"]
        assert names["module"] is getattr(package, name) is sys.modules["hsic_lab." + name]
        assert function is getattr(getattr(package, name), name) is not names["module"]
        assert torch.equal(names["module"](x, x, estimator="unbiased"), function(x, x, estimator="unbiased"))
        orders += 1
print(orders)
"""


def test_module_can_be_called_in_every_order_of_imports():
    done = subprocess.run([sys.executable, "-c", EVERY_ORDER], capture_output=True, text=True)
    assert done.stdout == "12\n", done.stderr


@pytest.mark.parametrize("name", ["hsic", "cka"])
def test_callable_module_has_the_signature_of_its_function_and_can_be_pickled(name):
    module = getattr(hsic_lab, name)
    assert inspect.signature(module) == inspect.signature(getattr(module, name))
    assert pickle.loads(pickle.dumps(module)) is module
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(x, x), getattr(module, name)(x, x))
