"""What the settings of a training describe: batches of views, networks, loss, optimizer and learning rate."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, reduce
from itertools import accumulate, groupby, islice, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim

from hsic_lab.datasets import LOADERS, DigitScenes, ImageData, load
from hsic_lab.encoders import ConvEncoder, MLPProjector, PooledEncoder, ResNetEncoder
from hsic_lab.losses import TwoViewLoss
from hsic_lab.training._config import LOSSES, TrainConfig
from hsic_lab.views import augmentation, normalize

Views = Callable[[Tensor, torch.Generator], Sequence[Tensor]]
Tensors = Sequence[Tensor]
SNAPSHOT_PAIRS = 2048  # pairs of which a run keeps C
KEPT_SAMPLES = 256  # of these pairs, whose projections a run keeps too


class ImageSource:
    """Batches of the images in `parts`, tensors `(n_i, ...)` of one shape and dtype, in memory or mapped from a file.

    A GPU holds all of them from the start if they take at most half of its free memory.
    """

    def __init__(self, parts: Sequence[Tensor], device: torch.device | str) -> None:
        self.device = torch.device(device)
        most = torch.cuda.mem_get_info(self.device)[0] // 2 if self.device.type == "cuda" else 0
        moved = sum(part.nbytes for part in parts) <= most
        self.parts = [part.to(self.device) for part in parts] if moved else list(parts)
        self.starts = [0, *accumulate(map(len, parts))]

    def batches(self, order: Tensor, size: int) -> Iterator[Tensor]:
        """Yield batches of `size` images at the positions `order` (int64, any device), without a ragged last one."""
        rows = order.to(self.parts[0].device).split(size)[: len(order) // size]
        return (self._gather(index).to(self.device) for index in rows)

    def _gather(self, index: Tensor) -> Tensor:
        if len(self.parts) == 1:
            return self.parts[0][index]
        batch = self.parts[0].new_empty(len(index), *self.parts[0].shape[1:])
        for part, start, end in zip(self.parts, self.starts, self.starts[1:], strict=False):
            rows = ((index >= start) & (index < end)).nonzero().squeeze(1)
            batch[rows] = part[index[rows] - start]
        return batch


def make_views(config: TrainConfig, data: ImageData, views: Views | None = None) -> Views | None:
    """The function that makes the views: `views`, else the augmentation of the settings; None for scenes."""
    if views is not None and not callable(views):
        raise TypeError(f"views must be a function, got {views!r}; TrainConfig(views=...) takes the names")
    chosen = config.views != "default" or config.view_size is not None
    given = f"views={config.views!r}, view_size={config.view_size!r}"
    if views is not None and chosen:
        raise ValueError(f"views must be given as a function or as a setting, got both: {given}")
    if data.scenes is not None and (views is not None or chosen or config.views_per_image != 2):
        accepted = f"{data.name} takes views='default', no view_size, 2 views and no function, for it holds pairs"
        raise ValueError(f"{accepted}, got {views or given}, views_per_image={config.views_per_image}")
    if data.scenes is not None or views is not None:
        return views
    if data.train.images.dtype != torch.uint8:
        raise ValueError(f"{data.name!r} holds float32 rows: give views of your own")
    side = config.view_size or min(data.train.images.shape[-2:])
    return augmentation(config.views, side if isinstance(side, tuple) else [side] * config.views_per_image)


class TrainingPairs:
    """Batches of views of images or of fresh scenes. Each process draws the whole batch, yields its `rows`."""

    def __init__(
        self, data: ImageData, config: TrainConfig, device: torch.device, rows: slice | Tensor,
        views: Views | None = None,
    ) -> None:  # fmt: skip
        self.n, self.size = sum(map(len, data.trained_on)), config.batch_size
        if self.n < self.size:
            raise ValueError(f"batch_size {self.size} is larger than the {self.n} training images")
        self.config, self.device, self.rows = config, device, rows
        self.scenes, self.views = data.scenes, make_views(config, data, views)
        self.source = None if data.scenes else ImageSource(data.trained_on, device)

    def __len__(self) -> int:
        return self.n // self.size

    def epoch(self, number: int, skip: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of an epoch after the first `skip`, whose random numbers are drawn too."""
        generator = torch.Generator(self.device).manual_seed(seed_of(self.config.seed, number))
        pairs = self._scene_pairs(self.scenes, generator) if self.scenes else self._view_pairs(generator)
        for views in islice(pairs, skip, None):
            yield tuple(prepared(view, self.device) for view in views)

    def _scene_pairs(self, scenes: DigitScenes, generator: torch.Generator) -> Iterator[Iterator[Tensor]]:
        for _ in range(len(self)):
            pair = scenes.draw_pairs(self.size, generator, self.config.shared)
            # A generator, because skipped batches are drawn but not rendered.
            yield (scenes.render({k: v[self.rows] for k, v in factors.items()}) for factors in pair)

    def _view_pairs(self, generator: torch.Generator) -> Iterator[Iterator[Tensor]]:
        assert self.source and self.views  # these are images, not scenes
        order = torch.randperm(self.n, generator=generator, device=self.device)
        for images in self.source.batches(order, self.size):
            views = list(self.views(images, generator))
            if wrong := [len(view) for view in views if len(view) != self.size]:
                raise ValueError(f"views must keep their {self.size} images, got {wrong}")
            yield (view[self.rows] for view in views)


def data_of(name: str, metadata: Mapping[str, Any]) -> ImageData:
    """Return the images of a run with these `metadata`, loaded as the run loaded them."""
    if name not in LOADERS and not Path(name).is_dir():
        remedy = "if the run was trained on arrays, evaluate it in Python with its data"
        raise ValueError(f"the data of the run, {name!r}, are neither a known data set nor a folder: {remedy}")
    data = load(name, **metadata.get("source") or {})  # older runs lack it
    check_same_images(metadata, data)
    return data


def check_same_images(metadata: Mapping[str, Any], data: ImageData, run: str = "the run") -> None:
    """Raise ValueError if a run with these `metadata` had other images or labels; older runs do not know some."""
    if (old := metadata.get("pictures", data.fingerprint)) != data.fingerprint:
        raise ValueError(f"{run} was trained on other images, {old}; those of {data.name!r} are {data.fingerprint}")
    if (old := metadata.get("judged", data.judged)) != data.judged:
        raise ValueError(f"{run} had other test images or labels, {old}; those of {data.name!r} are {data.judged}")


def held_out_pairs(data: ImageData, config: TrainConfig, device: torch.device, views: Any = None) -> list[Tensor]:
    """Return the first two views of test images or scenes, the same for all runs on a set with these views."""
    if len(data.test) < 2 and not data.scenes:
        remedy = "hold out more: test_fraction=0.3 (--test-fraction 0.3), for instance"
        raise ValueError(f"C needs at least 2 held-out images, {data.name!r} has {len(data.test)}: {remedy}")
    make: Any = make_views(config, data, views)
    generator = torch.Generator(device).manual_seed(seed_of(0, 1 << 30))
    if data.scenes:
        pair = DigitScenes("test", data.scenes.size).pairs(SNAPSHOT_PAIRS, generator, config.shared)
    else:
        pair = tuple(make(data.test.sample(SNAPSHOT_PAIRS).images.to(device), generator))
        if len(pair) != config.views_per_image:
            raise ValueError(f"views must return views_per_image={config.views_per_image} views, got {len(pair)}")
    return [prepared(view, device) for view in pair[:2]]


def seed_of(*key: int) -> int:
    """Return a 63-bit seed for several integers; different keys have unrelated seeds."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def prepared(view: Tensor, device: torch.device) -> Tensor:
    """Return a view as networks read it: floating point on the device, and images in channels-last memory."""
    view = (normalize(view) if view.dtype == torch.uint8 else view).to(device)
    return view.contiguous(memory_format=torch.channels_last) if view.ndim == 4 else view.contiguous()


@contextmanager
def torch_seed(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of the CPU and of the device for the block; afterwards they are as before."""
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), ExitStack() as after:
        torch.random.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        if device is not None and device.type == "mps":  # its functions take no number of a device, as fork_rng needs
            after.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
            torch.mps.manual_seed(seed)
        yield


@contextmanager
def float32_default() -> Iterator[None]:
    """Make new tensors float32 within the block, whatever default type the program has chosen."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_loss(config: TrainConfig) -> TwoViewLoss:
    """The loss of the settings, without their `loss_scale`."""
    return LOSSES[config.loss](**config.loss_arguments)


def make_networks(config: TrainConfig, channels: int, encoder: Any = None, features: Any = None) -> tuple[Any, Any]:
    """Encoder and projector as the seed initializes them; for "custom" the encoder given, with `features` outputs."""
    if (config.encoder == "custom") != (encoder is not None):
        if encoder is None:
            raise ValueError("encoder 'custom' is a module of your own: pass it, as in Run.load(folder, encoder=...)")
        raise ValueError(f"encoder must be 'custom' if a module is given, got {config.encoder!r}")
    with torch_seed(config.seed), float32_default():
        if config.encoder in ("conv", "pooled"):
            encoder = (ConvEncoder if config.encoder == "conv" else PooledEncoder)(config.width, channels)
        elif encoder is None:
            encoder = ResNetEncoder(int(config.encoder.removeprefix("resnet")), config.stem, channels)
        return encoder, MLPProjector([encoder.out_features if features is None else features, *config.projector])


def make_predictor(config: TrainConfig) -> nn.Module | None:
    """The predictor of the settings, initialized by their seed; None if they have no predictor."""
    d = config.projector[-1]
    with torch_seed(config.seed + 1):
        return MLPProjector([d, *config.predictor, d]) if config.predictor else None


class OnlineNetwork(nn.Module):
    """The trained network: images to `(p, z)` with z the projections and p their prediction (z without predictor).

    Images of several sizes are separate batches for the encoder, and one batch for the projector.
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module, predictor: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor = encoder, projector, predictor

    def forward(self, *images: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projector(torch.cat([self.encoder(one) for one in images]))
        return (z if self.predictor is None else self.predictor(z)), z


class TargetNetwork(nn.Module):
    """A copy of encoder and projector that follows the online network: Grill et al. (2020), arXiv:2006.07733."""

    def __init__(self, online: OnlineNetwork, momentum: float) -> None:
        super().__init__()
        self.encoder, self.projector = copy.deepcopy(online.encoder), copy.deepcopy(online.projector)
        self.requires_grad_(False)
        self.momentum = momentum
        self.train()  # in evaluation mode the statistics of batch normalization would not change

    @torch.no_grad()
    def forward(self, *images: Tensor) -> Tensor:
        return self.projector(torch.cat([self.encoder(one) for one in images]))

    @torch.no_grad()
    def ema_update(self, online: OnlineNetwork, progress: float) -> None:
        """`target <- m target + (1 - m) online`; m rises from the momentum to 1 as `progress` goes from 0 to 1."""
        m = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2
        for own, others in ((self.encoder, online.encoder), (self.projector, online.projector)):
            torch._foreach_lerp_(list(own.parameters()), list(others.parameters()), 1 - m)


def loss_terms(loss: TwoViewLoss, config: TrainConfig, predicted: Tensors, targets: Tensors) -> dict[str, Tensor]:
    """The named terms of the loss for `predicted = (p_1, ..., p_V)` and `targets = (t_1, ..., t_V)`, with `loss_scale`.

    With a predictor or another target than "same" each term is the mean over the pairs (p_v, t_w) with v != w:
    Chen and He (2021), SimSiam, arXiv:2011.10566, equation 4.
    """
    if config.target == "same" and not config.predictor:
        terms = loss.terms(*predicted)
    else:
        targets = [target.detach() for target in targets] if config.target == "stop_gradient" else targets
        pairs = [loss.terms(predicted[v], targets[w]) for v, w in permutations(range(len(targets)), 2)]
        terms = {name: reduce(torch.add, [one[name] for one in pairs]) / len(pairs) for name in pairs[0]}
    return terms if config.loss_scale == 1 else {name: config.loss_scale * value for name, value in terms.items()}


def split_views(views: Tensors, sizes: Sequence[int]) -> list[list[Tensor]]:
    """Parts of a batch, of `sizes` images with all their views; adjacent views of one shape are one tensor."""
    groups = [list(group) for _, group in groupby(views, lambda view: view.shape)]
    split = [zip(*(view.split(list(sizes)) for view in group), strict=True) for group in groups]
    return [[torch.cat(rows) for rows in part] for part in zip(*split, strict=True)]


def join_views(parts: Tensors, count: int = 2) -> list[Tensor]:
    """The views of a batch, from parts that each hold `count` views of some images, one view after the other."""
    return [torch.cat(rows) for rows in zip(*(part.chunk(count) for part in parts), strict=True)]


class LARS(optim.Optimizer):
    """Layer-wise adaptive rate scaling with momentum: You et al. (2017), arXiv:1708.03888, as Barlow Twins uses it.

    `u = g + weight_decay w` for a gradient g, then `m <- momentum m + q u` and `w <- w - lr m`. In groups with `adapt`
    the factor q is `trust_coefficient |w| / |u|`, with `clip` that over lr and at most 1; it is 1 where a norm is 0.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3, adapt: bool = True, clip: bool = False,
    ) -> None:  # fmt: skip
        rates = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, rates | {"trust_coefficient": trust_coefficient, "adapt": adapt, "clip": clip})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if not (weights := [w for w in group["params"] if w.grad is not None]):
                continue
            # One call for all parameters of each operation: a loop would launch a thousand small kernels.
            updates = torch._foreach_add([w.grad for w in weights], weights, alpha=group["weight_decay"])
            if group["adapt"]:
                norms, update_norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, updates))
                scales = group["trust_coefficient"] * norms / update_norms
                if group["clip"]:
                    scales = (scales / group["lr"]).clamp(max=1)
                scales = torch.where((norms > 0) & (update_norms > 0), scales, torch.ones_like(scales))
                torch._foreach_mul_(updates, list(scales.unbind()))
            for w in weights:
                if "momentum_buffer" not in self.state[w]:
                    self.state[w]["momentum_buffer"] = torch.zeros_like(w)
            momenta = [self.state[w]["momentum_buffer"] for w in weights]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, updates)
            torch._foreach_add_(weights, momenta, alpha=-group["lr"])


def make_optimizer(config: TrainConfig, network: nn.Module) -> optim.Optimizer:
    """The optimizer of the settings, with the highest rate of a group under "peak".

    Vectors, which are biases and batch normalization, may have a rate of their own, and LARS does not decay them.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained}]
    if config.optimizer == "lars" or config.bias_learning_rate is not None:
        weights, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        bias_rate = config.learning_rate if config.bias_learning_rate is None else config.bias_learning_rate
        exempt = {"weight_decay": 0.0, "adapt": False} if config.optimizer == "lars" else {}
        groups = [{"params": weights}, {"params": vectors, "lr": bias_rate} | exempt]
    trust: dict[str, Any] = {"trust_coefficient": config.trust_coefficient, "clip": config.trust_clip}
    kinds: dict[str, Callable[..., optim.Optimizer]] = {
        "lars": partial(LARS, momentum=config.momentum, **trust), "adamw": partial(optim.AdamW, fused=True),
        "sgd": partial(optim.SGD, momentum=config.momentum, fused=True), "adam": partial(optim.Adam, fused=True),
    }  # fmt: skip
    groups = [group for group in groups if group["params"]]
    optimizer = kinds[config.optimizer](groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    return optimizer


def set_learning_rate(optimizer: optim.Optimizer, config: TrainConfig, step: int, steps_per_epoch: int) -> None:
    """Give every group its rate after `step` updates: a linear warm-up, then the schedule. No state to resume."""
    warmup, steps, share = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch, 1.0
    if step < warmup:
        share = (step + 1) / (warmup + 1)
    elif config.schedule == "cosine":
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
        share = config.final_learning_rate + (1 - config.final_learning_rate) * cosine
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
