"""Self-supervised features as a scikit-learn transformer."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from hsic_lab._checks import check_integer, check_number, check_type
from hsic_lab.datasets import ImageData, Images
from hsic_lab.datasets._folders import as_images
from hsic_lab.encoders import MLPProjector
from hsic_lab.evaluation import extract_features
from hsic_lab.training import Run, TrainConfig, train
from hsic_lab.training._run import SETTINGS
from hsic_lab.training._setup import SNAPSHOT_PAIRS, Views, torch_seed


class CorruptedRows:
    """Two views of each row of a table, in which random entries are replaced by other entries of the same column.

    Unlike in SCARF (Bahri et al. 2022, arXiv:2106.15147), both views are corrupted.

    Parameters
    ----------
    corruption : float, default 0.3
        Probability, between 0 and 1, that an entry is replaced by that of a random row of the batch.
    """

    def __init__(self, corruption: float = 0.3) -> None:
        self.corruption = check_number("corruption", corruption, 0, 1, above=True, below=True)

    def __call__(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return two views of rows ``(m, p)``, on whose device the generator is."""
        return self._view(rows, generator), self._view(rows, generator)

    def _view(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(rows.shape, generator=generator, device=rows.device) < self.corruption
        donors = torch.randint(len(rows), rows.shape, generator=generator, device=rows.device)
        return torch.where(chosen, rows.gather(0, donors), rows)


class SelfSupervisedEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Learn features from pairs of views of each row of X, without labels.

    X is a table ``(n_samples, n_features)``, whose columns are standardized (constant columns become 0), or images:
    ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)`` with c = 1 or 3, as uint8 or as floats in [0, 1], which are
    rounded to multiples of 1/255. With ``image_shape``, the rows of a table are images.

    Parameters
    ----------
    loss, lambda_param, epochs, learning_rate : str, float or None, int, float
        As in :class:`~hsic_lab.training.TrainConfig`.
    projector, width : tuple of int, int, default (512, 128), 16
        Widths of the projector; channels of the default encoder's first layer (``16 * width`` features for a table).
    encoder : str or Module, default "auto"
        "auto" (`ConvEncoder`, or an MLP with two layers for a table); "resnet18", "resnet34" or "resnet50" for images;
        or a module, of which a copy is trained, from images in [-1, 1] or standardized rows to features ``(n, p)``.
    views : callable or None, default None
        ``views(x, generator)`` returns two views of a batch of uint8 images ``(m, c, h, w)`` or of standardized float32
        rows ``(m, p)``. None means :class:`~hsic_lab.views.TwoViews` or :class:`CorruptedRows`.
    image_shape : tuple of int or None, default None
        ``(h, w)``, ``(h, w, c)`` or ``(c, h, w)``, if X holds flattened images.
    batch_size, random_state : int, default 256, and int, RandomState instance or None
        Pairs that the loss sees at once, at most all; source of all random numbers, an int for equal results.
    device, verbose : str, int, default "auto", 0
        "auto" (CUDA if available), "cpu" or "cuda", where the networks are trained; whether to show a progress bar.

    Attributes
    ----------
    encoder_, projector_ : Module
        The trained networks, on the CPU and in evaluation mode.
    history_, correlation_ : DataFrame, ndarray of shape (d, d)
        One row for each logged step; C after training, of views of the first 2048 rows of X.

    Examples
    --------
    >>> import numpy as np
    >>> from hsic_lab.estimator import SelfSupervisedEncoder
    >>> X = np.random.default_rng(0).normal(size=(64, 5))
    >>> SelfSupervisedEncoder(width=1, projector=(8,), epochs=1).fit_transform(X).shape
    (64, 16)
    """

    def __init__(
        self, loss: str = "barlow_twins", *, lambda_param: float | None = None, projector: tuple[int, ...] = (512, 128),
        width: int = 16, encoder: str | nn.Module = "auto", views: Views | None = None,
        image_shape: tuple[int, ...] | None = None, epochs: int = 22, batch_size: int = 256,
        learning_rate: float = 4e-3, random_state: int | np.random.RandomState | None = None, device: str = "auto",
        verbose: int = 0,
    ) -> None:  # fmt: skip
        self.loss, self.lambda_param, self.projector, self.width = loss, lambda_param, projector, width
        self.encoder, self.views, self.image_shape, self.epochs = encoder, views, image_shape, epochs
        self.batch_size, self.learning_rate, self.random_state = batch_size, learning_rate, random_state
        self.device, self.verbose = device, verbose

    def fit(self, X: Any, y: Any = None) -> "SelfSupervisedEncoder":
        """Train the encoder on X. Ctrl-C keeps the networks of that moment and raises KeyboardInterrupt."""
        shape = getattr(X, "shape", ())[1:] if getattr(X, "ndim", 2) > 2 else self.image_shape
        rows = self._rows(X, reset=True)
        self._image_shape = None if shape is None else tuple(check_type("image_shape", shape, list, tuple))
        if self._image_shape is None:
            self._scaler = StandardScaler().set_output(transform="default").fit(rows)  # whatever the user has set
        config = TrainConfig(
            **{k: getattr(self, k) for k in ("loss", "lambda_param", "width", "epochs", "learning_rate", "device")},
            encoder=self.encoder if isinstance(self.encoder, str) and self.encoder != "auto" else "conv",
            projector=tuple(check_type("projector", self.projector, list, tuple)),
            batch_size=min(check_integer("batch_size", self.batch_size, 2), len(rows)), snapshots=2,
            checkpoint_every=self.epochs, seed=check_random_state(self.random_state).randint(np.iinfo(np.int32).max),
        )  # fmt: skip
        images = self._images(rows)
        data = ImageData("X", images, images.subset(slice(SNAPSHOT_PAIRS)), ("unknown",))
        encoder = self._own_encoder(config.seed)
        views = CorruptedRows() if self.views is None and self._image_shape is None else self.views
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "run")
            try:
                self._keep(train(config, folder, data, bool(self.verbose), encoder=encoder, views=views))
            except KeyboardInterrupt:
                if (folder / SETTINGS).exists():  # otherwise nothing was trained
                    self._keep(Run._load(folder, encoder))  # without its warning
                raise
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the encoder's features of X, float32 of shape (n_samples, p); each row depends on its own row of X."""
        check_is_fitted(self, "encoder_")
        return extract_features(self.encoder_, self._images(self._rows(X, reset=False)).images).numpy()

    def _rows(self, X: Any, reset: bool) -> np.ndarray:
        """Return X as rows that scikit-learn has checked."""
        of_images = getattr(X, "ndim", 2) > 2 or (self.image_shape if reset else self._image_shape) is not None
        if of_images and (kind := np.asarray(X).dtype).kind in "iu" and kind != np.uint8:
            raise ValueError(f"X holds images as {kind}: convert them to uint8, or to floats in [0, 1]")
        if getattr(X, "ndim", 2) > 2:
            if not reset and (shape := tuple(X.shape[1:])) != self._image_shape:
                raise ValueError(f"X has images of shape {shape}, fit saw {self._image_shape or 'rows of numbers'}")
            X = np.asarray(X).reshape(len(X), -1)
        dtypes = [np.float64, np.float32, np.uint8]
        return validate_data(self, X, reset=reset, dtype=dtypes, ensure_min_samples=2 if reset else 1)

    def _images(self, rows: np.ndarray) -> Images:
        """Return rows as uint8 images, or as standardized float32 rows."""
        labels = torch.zeros(len(rows), dtype=torch.int64)
        if self._image_shape is None:
            return Images(torch.from_numpy(self._scaler.transform(rows).astype(np.float32)), labels)
        if rows.shape[1] != np.prod(self._image_shape):
            raise ValueError(f"image_shape {self._image_shape} does not fit the {rows.shape[1]} columns of X")
        return Images(as_images("X", rows.reshape(len(rows), *self._image_shape)), labels)

    def _own_encoder(self, seed: int) -> nn.Module | None:
        """Return the module to train, or None if the config names it."""
        if not isinstance(self.encoder, str):
            return copy.deepcopy(check_type("encoder (auto, a name or a module)", self.encoder, nn.Module))
        if self._image_shape is not None:
            return None
        if self.encoder != "auto":
            raise ValueError(f"encoder must be 'auto' or a module where X holds rows, got {self.encoder!r}")
        width = 16 * self.width
        with torch_seed(seed):
            return nn.Sequential(*list(MLPProjector([self.n_features_in_, width, width, 1]))[:-1])  # its hidden layers

    def _keep(self, run: Run) -> None:
        """Set the fitted attributes."""
        self.encoder_, self.projector_ = run.encoder.cpu().eval(), run.projector.cpu().eval()
        self.history_, self.correlation_ = run.history, run.snapshots[max(run.snapshots)].numpy()
        self._n_features_out = next(self.projector_.parameters()).shape[1]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []  # features are float32 for any dtype of X
        return tags
