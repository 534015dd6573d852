# %% [markdown]
# # Two explorers of known matrices, for the browser test

# %%
import torch

from hsic_lab.correlation import cross_correlation
from hsic_lab.explorer import CorrelationExplorer


def views(d):
    generator = torch.Generator().manual_seed(d)
    shared = torch.randn(60, d, generator=generator)
    return shared, shared + torch.randn(60, d, generator=generator)


def matrices():
    return [cross_correlation(*views(d)) for d in (12, 1100)]


# %%
if __name__ == "__main__":
    from IPython.display import display

    display(CorrelationExplorer(*views(12)))
    display(CorrelationExplorer(*views(1100)))
