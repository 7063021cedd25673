"""Parameter counts against tables written down by hand, and the range of data that each network takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import theriac as th
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.models import architectures, build, features, parameter_count, to_input
from theriac.models.preact_resnet import PreActResNet18
from theriac.models.vgg import VGG19BN
from theriac.models.vit import ViT, default_patch
from theriac.models.wrn import WideResNet

IMAGE = ("preact_resnet18", "resnet18", "vgg19_bn", "vit_small", "wrn_16_1")


def split_of(height: int, width: int, channels: int, classes: int = 10) -> th.Split:
    names = tuple(map(str, range(classes)))
    card = Card(classes=names, size=(height, width), channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    x = torch.randint(0, 256, (3, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return th.Split(x, torch.arange(3), card=card)


def test_the_list_names_all_of_them():
    assert architectures() == ("mlp", *IMAGE)


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (PreActResNet18(10), 11_171_146),  # the literature's count
        (PreActResNet18(10, width=16), 700_762),
        (WideResNet(10), 175_066),  # counted on the network of the official CBD code, as are the next two
        (WideResNet(43), 177_211),
        (WideResNet(10, depth=10), 77_850),
    ],
)
def test_counts_of_the_literature(net: nn.Module, count: int):
    assert parameter_count(net) == count


@pytest.mark.parametrize(("classes", "channels", "width"), [(10, 3, 64), (43, 1, 16)])
def test_vgg_count_layer_by_layer(classes: int, channels: int, width: int):
    outputs = [width * f for f in (1, 1, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 8, 8)]
    inputs = [channels, *outputs[:-1]]
    convolutions = sum(9 * i * o + o for i, o in zip(inputs, outputs, strict=True))
    norms = sum(2 * o for o in outputs)
    head = outputs[-1] * classes + classes
    assert parameter_count(VGG19BN(classes, channels, width=width)) == convolutions + norms + head
    if (classes, channels, width) == (10, 3, 64):
        assert convolutions + norms + head == 20_040_522


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (64, 64)])
def test_vgg_does_not_grow_with_the_image(size: tuple[int, int]):
    assert parameter_count(VGG19BN(10, 3, size, 16)) == parameter_count(VGG19BN(10, 3, (224, 224), 16))


@pytest.mark.parametrize(("size", "patch", "patches"), [(8, 2, 16), (28, 4, 49), (32, 4, 64), (64, 8, 64), (224, 16, 196)])
def test_vit_count_in_closed_form(size: int, patch: int, patches: int):
    d, layers, ratio, k, c = 48, 2, 3, 10, 3
    block = (4 * d * d + 4 * d) + (2 * ratio * d * d + ratio * d + d) + 4 * d  # attention, MLP, two LayerNorms
    expected = (c * patch**2 * d + d) + d + (patches + 1) * d + layers * block + 2 * d + (d * k + k)
    net = ViT(k, c, (size, size), dim=d, depth=layers, heads=4, mlp_ratio=ratio)
    assert default_patch((size, size)) == patch
    assert parameter_count(net) == expected


def test_vit_attention_equals_the_textbook_formula():
    attention = ViT(10, 1, (8, 8), dim=12, depth=1, heads=3).blocks[0].attn.double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    nn.init.normal_(attention.qkv.weight)  # far from the draw near zero, where every formula agrees
    q, k, v = (x @ w.T + b for w, b in zip(attention.qkv.weight.split(12), attention.qkv.bias.split(12), strict=True))
    heads = []
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        scores = (q[..., part] @ k[..., part].mT / 2.0).softmax(-1)  # sqrt(4) = 2
        heads.append(scores @ v[..., part])
    torch.testing.assert_close(attention(x), torch.cat(heads, -1) @ attention.proj.weight.T + attention.proj.bias)


@pytest.mark.parametrize("name", IMAGE)
@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 1), (28, 28, 1), (32, 32, 3), (48, 64, 3)])
def test_every_network_takes_small_and_larger_images(name: str, height: int, width: int, channels: int):
    split = split_of(height, width, channels, 7)
    small = {"dim": 32, "depth": 2} if name == "vit_small" else {"widen": 1} if name == "wrn_16_1" else {"width": 4}
    model = build(name, split, **small).eval()
    with torch.no_grad():
        logits = model(to_input(split.x))
    assert logits.shape == (3, 7)
    assert bool(logits.isfinite().all())
    assert float(logits.std(0).max()) > 0, "different images must give different logits"
    assert features(model).layer.startswith("net.")


@pytest.mark.parametrize("name", IMAGE)
def test_every_network_takes_224_pixels(name: str):
    split = split_of(224, 224, 3)
    small = {"dim": 16, "depth": 1} if name == "vit_small" else {"depth": 10} if name == "wrn_16_1" else {"width": 1}
    with torch.no_grad():
        assert build(name, split, **small).eval()(to_input(split.x)).shape == (3, 10)


def test_wrn_embedding_is_never_negative_and_has_64_numbers():
    split = split_of(16, 16, 3)
    with torch.no_grad():
        _, embedding = features(build("wrn_16_1", split).eval())(to_input(split.x))
    assert embedding.shape == (3, 64)
    assert float(embedding.min()) >= 0


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        ("vgg19_bn", (4, 4), {}, "images are 4 x 4; VGG-19 needs at least 8 pixels"),
        ("vit_small", (218, 178), {}, "resize the images, or give patch="),
        ("vit_small", (31, 31), {}, "no size near that divides both sides"),
        ("vit_small", (32, 32), {"patch": 5}, "patch is 5, which does not divide 32 x 32"),
        ("vit_small", (64, 64), {"patch": 1}, "4096 patches; at most 1024"),
        ("vit_small", (32, 32), {"heads": 5, "dim": 64}, "heads is 5, which does not divide dim 64"),
        ("wrn_16_1", (32, 32), {"depth": 17}, "depth is 17; expected 6 n + 4"),
        ("wrn_16_1", (32, 32), {"widen": 0}, "widen is 0; expected a whole number of at least 1"),
        ("preact_resnet18", (32, 32), {"width": "64"}, "width is '64'; expected a whole number"),
        ("preact_resnet18", (32, 32), {"final_norm": "no"}, "final_norm is 'no'; expected true or false"),
        ("preact_resnet18", (32, 32), {"widht": 64}, "unknown option of preact_resnet18 'widht'; did you mean 'width'"),
        ("preact_resnet19", (32, 32), {}, "unknown architecture 'preact_resnet19'; did you mean 'preact_resnet18'"),
        ("mlp", (32, 32), {}, "architecture 'mlp' is for table data"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(name: str, size: tuple[int, int], options: dict, message: str):
    with pytest.raises(InputError) as caught:
        build(name, split_of(*size, 3), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_card_without_mean_and_size_is_completed_or_refused():
    x = torch.full((2, 1, 8, 8), 51, dtype=torch.uint8)
    x[1] = 153
    card = Card(classes=("a", "b"), size=(8, 8), channels=1)
    model = build("wrn_16_1", th.Split(x, torch.tensor([0, 1]), card=card))
    assert model.card.mean == (0.4,)  # (51 + 153) / 2 / 255
    assert float(model.prepare.std) == pytest.approx(0.2)
    with pytest.raises(InputError, match="2 means for 1 channels"):
        build("wrn_16_1", th.Split(x, torch.tensor([0, 1]), card=card.replace(mean=(0.1, 0.2), std=(1.0, 1.0))))


def test_the_same_seed_builds_the_same_network_and_leaves_the_global_generator():
    split = split_of(8, 8, 1)
    before = torch.random.get_rng_state()
    first, again = (build("vit_small", split, th.Run(seed=3)) for _ in range(2))
    other = build("vit_small", split, th.Run(seed=4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.net.head.weight, other.net.head.weight)


@pytest.mark.parametrize(
    ("name", "options"),
    [("vgg19_bn", {"width": 8}), ("vit_small", {"dim": 32, "depth": 2}), ("wrn_16_1", {"depth": 10})],
)
def test_each_learns_forty_digits_by_heart(name: str, options: dict, digits: th.Data):
    few = digits.train.take(torch.arange(40))
    model = build(name, few, **options)
    x, optimizer = to_input(few.x), torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), few.y).backward()
        optimizer.step()
    assert float((model(x).argmax(1) == few.y).float().mean()) > 0.9
