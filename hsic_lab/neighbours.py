"""Weighted nearest neighbours on frozen features."""

import numpy as np
import torch

from hsic_lab.labelled import Data, checked_splits
from hsic_lab.sphere import unit_rows

_BLOCK_ELEMENTS = 1 << 24  # similarities a block may hold: 64 MiB in float32


def knn_accuracy(
    train_x: Data, train_y: Data, test_x: Data, test_y: Data, k: int = 200, temperature: float = 0.5
) -> float:
    """Accuracy of the weighted k-nearest-neighbour vote of Wu et al. 2018 (arXiv 1805.01978, section 3.4).

    A test row's k training rows of highest cosine similarity s vote for their class with weight `exp(s /
    temperature)`; the class with the largest sum wins, the smaller label on a tie. Runs on the device of
    `train_x`, over blocks of test rows, so that memory does not grow with their number.

    Raises ValueError as `labelled.checked_splits`, for k outside 1..n_train, a temperature that is
    not positive, and a zero row, which has no direction.
    """
    train, test, train_y, test_y = checked_splits(train_x, train_y, test_x, test_y)
    if not 1 <= k <= len(train):
        raise ValueError(f"k must be between 1 and the {len(train)} training rows, got {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    classes, votes_for = np.unique(train_y, return_inverse=True)
    votes_for = torch.as_tensor(votes_for, device=train.device)
    test = test.to(train)
    bank, queries = unit_rows("train_x", train), unit_rows("test_x", test)

    predictions = []
    for block in queries.split(max(1, _BLOCK_ELEMENTS // len(bank))):
        similarity, neighbours = (block @ bank.T).topk(k, dim=1)
        # Divided by the row's largest weight, which changes no vote's rank: exp cannot overflow.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(block), len(classes))
        predictions.append(votes.scatter_add_(1, votes_for[neighbours], weights).argmax(dim=1).cpu())
    return float(np.mean(classes[torch.cat(predictions).numpy()] == test_y))
