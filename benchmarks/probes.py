"""The torch probe beside scikit-learn on one objective: seconds, the objective reached, and test accuracy.

Features are Gaussian class means plus noise with a spectrum that falls like 1/k, ten or a hundred classes, float32.
Both solve multinomial logistic regression at C = 0.1 on standardized features, in float64 from 0, to a gradient
tolerance: 1e-4, the default of both, where the two stop at different points near the optimum, and 1e-6, at the optimum.
Writes data/results/probes_<device>.csv.

    python benchmarks/probes.py
    python benchmarks/probes.py --device cuda
"""

import argparse
import itertools
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from hsic_lab.evaluation._probes import fast_probe
from hsic_lab.training._config import hardware

RESULTS = Path(__file__).parent.parent / "data" / "results"
SIZES = ((2_000, 256, 10), (10_000, 512, 10), (20_000, 512, 100), (20_000, 2048, 10))
TEST, C = 5_000, 0.1
TOLERANCES = (1e-4, 1e-6)


def sample(n: int, d: int, classes: int) -> tuple[torch.Tensor, np.ndarray]:
    """Features `(n + TEST, d)` and labels."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(classes, d, generator=generator)
    labels = torch.randint(classes, (n + TEST,), generator=generator)
    noise = 4 * torch.randn(n + TEST, d, generator=generator)
    mixing = torch.linalg.qr(torch.randn(d, d, generator=generator))[0] / torch.arange(1, d + 1).sqrt()
    return (means[labels] + noise) @ mixing.T, labels.numpy()


def measure(n: int, d: int, classes: int, tolerance: float, device: str, threads: int) -> list[dict]:
    x, y = sample(n, d, classes)
    train_y, test_y = y[:n], y[n:]
    fast_probe(x[:n].to(device), train_y, x[n:].to(device), test_y, C=1e-4)  # warm up
    fast = fast_probe(x[:n].to(device), train_y, x[n:].to(device), test_y, C=C, tolerance=tolerance)
    start = time.perf_counter()
    scaler = StandardScaler()
    train = scaler.fit_transform(x[:n].double().numpy())
    test = scaler.transform(x[n:].double().numpy())
    with threadpool_limits(threads):
        model = LogisticRegression(C=C, tol=tolerance, max_iter=10_000).fit(train, train_y)
    accuracy = float(np.mean(model.predict(test) == test_y))
    seconds = time.perf_counter() - start
    losses = log_loss(train_y, model.predict_proba(train), normalize=False)
    objective = C * losses + np.square(model.coef_).sum() / 2
    size = {"n_train": n, "features": d, "classes": classes, "n_test": TEST, "C": C, "tolerance": tolerance}
    return [
        size
        | {
            "probe": "fast_probe",
            "device": device,
            "seconds": round(fast.seconds, 3),
            "iterations": fast.iterations,
            "objective": fast.loss,
            "accuracy": fast.accuracy,
        },
        size
        | {
            "probe": "scikit-learn",
            "device": "cpu",
            "seconds": round(seconds, 3),
            "iterations": int(model.n_iter_[0]),
            "objective": float(objective),
            "accuracy": accuracy,
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for size, tolerance in itertools.product(SIZES, TOLERANCES):
        rows += measure(*size, tolerance, args.device, args.threads)
        print(pd.DataFrame(rows[-2:]).to_string(header=len(rows) == 2), flush=True)
    table = pd.DataFrame(rows)
    load = f", load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    table["hardware"] = f"{hardware(torch.device(args.device))}, {args.threads} threads{load}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, scikit-learn {sklearn.__version__}"
    table["versions"] = versions
    table["command"] = " ".join(["python benchmarks/probes.py", *sys.argv[1:]])
    RESULTS.mkdir(parents=True, exist_ok=True)
    table.to_csv(RESULTS / f"probes_{args.device}.csv", index=False)


if __name__ == "__main__":
    main()
