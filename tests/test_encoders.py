"""Networks: shapes, widths and errors."""

from itertools import pairwise

import pytest
import torch

from hsic_lab.encoders import ConvEncoder, MLPProjector, PooledEncoder, ResNetEncoder


@pytest.mark.parametrize(("width", "channels", "side"), [(2, 3, 32), (3, 1, 8), (1, 3, 33), (2, 3, 96)])
def test_features_are_non_negative_averages(width, channels, side):
    encoder = ConvEncoder(width, channels)
    features = encoder(torch.rand(2, channels, side, side))
    assert features.shape == (2, 16 * width) == (2, encoder.out_features)
    assert (features >= 0).all(), "an average of ReLUs"


def test_features_depend_on_every_quarter_of_the_image():
    encoder = ConvEncoder(4).eval()
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for rows, columns in [(slice(0, 4), slice(0, 4)), (slice(28, 32), slice(28, 32))]:
        changed = images.clone()
        changed[..., rows, columns] = 1
        assert not torch.equal(encoder(images), encoder(changed))


@pytest.mark.parametrize("sizes", [[8, 4], [8, 16, 4], (8, 16, 16, 4)])
def test_projector_has_the_given_widths(sizes):
    projector = MLPProjector(sizes)
    linear = [module for module in projector if isinstance(module, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == list(pairwise(sizes))
    assert all(layer.bias is None for layer in linear)
    assert isinstance(projector[-1], torch.nn.Linear)
    assert sum(isinstance(module, torch.nn.BatchNorm1d) for module in projector) == len(sizes) - 2
    assert projector(torch.randn(3, 8)).shape == (3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConvEncoder(0), "width must be an integer of at least 1, got 0"),
        (lambda: ConvEncoder(2)(torch.rand(2, 1, 8, 8)), r"\(n, 3, h, w\), got \(2, 1, 8, 8\)"),
        (lambda: ConvEncoder(2)(torch.rand(3, 8, 8)), r"got \(3, 8, 8\)"),
        (lambda: PooledEncoder(0), "width must be an integer of at least 1, got 0"),
        (lambda: PooledEncoder(2)(torch.rand(2, 1, 8, 8)), r"\(n, 3, h, w\), got \(2, 1, 8, 8\)"),
        (lambda: MLPProjector([8]), r"got \[8\]"),
        (lambda: MLPProjector([8, 0]), "sizes must be an integer of at least 1, got 0"),
    ],
)
def test_arguments_that_are_not_accepted_are_quoted(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Entries and parameters of torchvision's models, without the classifier (512 or 2048 times 1000, plus 1000).
@pytest.mark.parametrize(
    ("depth", "entries", "parameters", "features"),
    [
        (18, 120, 11_689_512 - 513_000, 512),
        (34, 216, 21_797_672 - 513_000, 512),
        (50, 318, 25_557_032 - 2_049_000, 2048),
    ],
)
def test_resnet_has_torchvisions_parameters(depth, entries, parameters, features):
    encoder = ResNetEncoder(depth, "imagenet")
    state = encoder.state_dict()
    assert len(state) == entries
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert encoder.out_features == features
    last = {18: "layer4.1.conv2", 34: "layer4.2.conv2", 50: "layer4.2.conv3"}[depth]
    for name in (
        "conv1.weight",
        "bn1.running_mean",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.bias",
        "layer3.1.bn2.num_batches_tracked",
        f"{last}.weight",
    ):
        assert name in state
    classified = state | {"fc.weight": torch.zeros(1000, features), "fc.bias": torch.zeros(1000)}
    with pytest.raises(RuntimeError, match=r"fc\.weight"):
        encoder.load_state_dict(classified)


@pytest.mark.parametrize(
    ("depth", "stem", "side", "last"), [(18, "cifar", 32, 4), (18, "imagenet", 64, 2), (50, "cifar", 16, 2)]
)
def test_resnet_features_are_averages_of_the_last_map(depth, stem, side, last):
    encoder = ResNetEncoder(depth, stem).eval()
    maps = []
    encoder.layer4.register_forward_hook(lambda module, inputs, output: maps.append(output))
    with torch.no_grad():
        features = encoder(torch.rand(2, 3, side, side))
    assert features.shape == (2, encoder.out_features)
    assert maps[0].shape[-2:] == (last, last)
    torch.testing.assert_close(features, maps[0].mean(dim=(2, 3)))


def test_resnet_block_adds_its_shortcut():
    block = ResNetEncoder(50).eval().layer2[0]
    block.bn3.weight.data.zero_()
    x = torch.rand(2, 256, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(block(x), block.downsample(x).relu())
    assert (block.conv1.stride, block.conv2.stride, block.downsample[0].stride) == ((1, 1), (2, 2), (2, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ResNetEncoder(20), "18, 34, 50, got 20"),
        (lambda: ResNetEncoder(18, "mnist"), "'mnist'"),
        (lambda: ResNetEncoder(18)(torch.rand(2, 1, 8, 8)), r"\(n, 3, h, w\), got \(2, 1, 8, 8\)"),
    ],
)
def test_resnet_arguments_that_are_not_accepted_are_quoted(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("width", "channels", "side"), [(2, 3, 32), (3, 1, 8), (1, 3, 33), (2, 3, 20)])
def test_pooled_features_are_the_quarter_means_of_all_three_maps(width, channels, side):
    encoder = PooledEncoder(width, channels).eval()
    maps = []
    for stage in encoder.stages:
        stage.register_forward_hook(lambda module, inputs, output: maps.append(output))
    with torch.no_grad():
        features = encoder(torch.rand(2, channels, side, side))
    assert features.shape == (2, encoder.out_features) == (2, 28 * width)
    assert [m.shape[1] for m in maps] == [width, 2 * width, 4 * width]
    start = 0
    for m in maps:
        h, w = m.shape[2:]  # a quarter of an odd side includes the middle row
        rows, columns = (slice(0, -(-h // 2)), slice(h // 2, h)), (slice(0, -(-w // 2)), slice(w // 2, w))
        quarters = torch.stack([m[..., r, c].mean(dim=(2, 3)) for r in rows for c in columns], dim=2)
        torch.testing.assert_close(features[:, start : start + 4 * m.shape[1]], quarters.flatten(1))
        start += 4 * m.shape[1]
