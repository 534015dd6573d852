"""How a probe chooses its L2 penalty without the test set: a stratified split and a path over C that ends in time."""

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.model_selection import train_test_split

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
VALIDATION = 0.2  # the share of the training rows that is held out


def check_strengths(strengths: Sequence[float], validation: float) -> None:
    """ValueError unless the values of C are positive and finite, and the share is one."""
    if not strengths or not all(np.isfinite(C) and C > 0 for C in strengths):
        raise ValueError(f"strengths must be positive finite values of C, got {tuple(strengths)}")
    if not 0 < validation < 1:
        raise ValueError(f"validation must be a share between 0 and 1, got {validation}")


def penalty_path(strengths: Sequence[float], score: Callable[[float], float]) -> dict[float, float]:
    """`score(C)` for C in ascending order, until two values in a row are below the best so far.

    Weaker penalties overfit more, and cost the most.
    """
    scores: dict[float, float] = {}
    for C in strengths:
        scores[C] = score(C)
        if len(scores) > 2 and max(list(scores.values())[-2:]) < max(scores.values()):
            break
    return scores


def stratified_split(x: np.ndarray, y: np.ndarray, size: int, seed: int) -> list[np.ndarray]:
    """`[x_first, x_rest, y_first, y_rest]`, `size` rows in the first part, with the classes' shares kept."""
    classes, counts = np.unique(y, return_counts=True)
    if counts.min() < 2:
        rare = classes[counts.argmin()].item()
        raise ValueError(f"every class needs at least 2 training rows, class {rare!r} has {counts.min()}")
    if min(size, len(y) - size) < len(classes):
        raise ValueError(
            f"{len(y)} training rows split into {size} and {len(y) - size}: each part needs a row for each "
            f"of the {len(classes)} classes"
        )
    return train_test_split(x, y, train_size=size, stratify=y, random_state=seed)
