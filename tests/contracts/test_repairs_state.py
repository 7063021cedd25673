"""Every repair on every kind of layer and source of a model: it works, or it refuses and names the layer. Nothing in between.

"Works" means that the outcome is "repaired" and the function has changed, or that the outcome says why the model is as it was.
A new repair is tested here as soon as it is registered.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from theriac.core.errors import InputError
from theriac.core.method import methods
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.models import to_input
from theriac.repairs import Repair

sys.path.insert(0, str(Path(__file__).parent))
from short_repairs import AUTO

REPAIRS = methods("repair")
LEARNS = ("ft", "ft_sam", "fp", "fst", "d3", "ibau", "nad", "sau", "age")  # these change every model that they accept
# as little work as possible; by default AGE abstains on a benign model
QUICK: dict[str, dict[str, object]] = {
    "ft": {"epochs": 1},
    "auto": AUTO,
    "btidbf": {"rounds": 1, "mask_epochs": 1, "generator_epochs": 1, "epochs": 1, "width": 2},
    "npd": {"warm_epochs": 0, "epochs": 1},
    "sau": {"rounds": 1, "steps": 1},
    "fp": {"epochs": 1, "share": 0.2},
    "ibau": {"rounds": 1},
    "nad": {"teacher_epochs": 1, "epochs": 1},
    "rnp": {"unlearn_epochs": 1, "recover_epochs": 1},
    "age": {
        "knowledge": "target",
        "target": 0,
        "retrain": "head",
        "per_class": 2,
        "epochs": 1,
        "rule": "project",
        "strengths": [1.0],
    },
}
WRITES = ("fst", "d3")  # these move the head's effective weight away from the old one


class Net(nn.Module):
    """A small network with any head; ``body.1`` is linear too."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU())
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class ConvNet(nn.Module):
    """Convolutions to the end."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)).mean((2, 3))


class Cosine(nn.Module):
    def __init__(self, learned: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 24), requires_grad=learned)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 16 * F.linear(F.normalize(x), F.normalize(self.weight))


class CosineLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 16 * F.linear(F.normalize(x), F.normalize(self.weight))


class Standardized(nn.Conv2d):
    """Weight standardization, as in BiT."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.weight.flatten(1)
        weight = (self.weight - flat.mean(1).view(-1, 1, 1, 1)) / (flat.std(1).view(-1, 1, 1, 1) + 1e-6)
        return F.conv2d(x, weight, self.bias)


class Padded(nn.Conv2d):
    """A convolution that pads by itself, as in TensorFlow's ports: its own forward pass, and linear in the weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


class Lora(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(24, 10).requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(24, 2, bias=False), nn.Linear(2, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class LoraLinear(nn.Linear):
    def __init__(self) -> None:
        super().__init__(24, 10)
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(2, 24)), nn.Parameter(torch.randn(10, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.lora_A.T @ self.lora_B.T


class Times(nn.Module):
    """A custom parametrization, with or without a way back."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class TimesBack(Times):
    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


class Tempered(nn.Module):
    """A learned temperature behind the logits: still the same classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.temperature = linear(), nn.Parameter(torch.tensor(0.7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) / self.temperature


class Tied(nn.Module):
    """Its head is the transposed decoder of the same table, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.body, self.head = nn.Embedding(10, 24), nn.Linear(64, 24), nn.Linear(24, 10, bias=False)
        self.head.weight = self.classes.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.body(x.flatten(1)))
        return self.head(h + self.classes(x.flatten(1).argmax(1) % 10))


class Raw(nn.Module):
    """Makes the weight of its head by itself in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.raw = nn.Linear(64, 24), nn.Linear(24, 10), nn.Parameter(torch.randn(10, 24))
        del self.head.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.head.weight = self.raw.tanh()
        return self.head(torch.relu(self.body(x.flatten(1))))


def linear() -> nn.Linear:
    return nn.Linear(24, 10)


def under(parametrization: nn.Module, layer: nn.Module | None = None) -> nn.Module:
    layer = layer or linear()
    parametrize.register_parametrization(layer, "weight", parametrization)
    return layer


def old(norm: Callable[[nn.Module], nn.Module], layer: Callable[[], nn.Module] = linear) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return norm(layer())


def conv() -> nn.Conv2d:
    return nn.Conv2d(8, 10, 1)


# name -> how it is made, whether a head's weight can be written, and the layer that a refusal names
KINDS: dict[str, tuple[Callable[[], nn.Module], bool, str]] = {
    "plain": (lambda: Net(linear()), True, "head"),
    "without a bias": (lambda: Net(nn.Linear(24, 10, bias=False)), True, "head"),
    "weight norm": (lambda: Net(parametrizations.weight_norm(linear())), True, "head"),
    "weight norm of all": (lambda: Net(parametrizations.weight_norm(linear(), dim=None)), True, "head"),
    "weight norm, old": (lambda: Net(old(nn.utils.weight_norm)), True, "head"),
    "weight norm, old, conv": (lambda: ConvNet(old(nn.utils.weight_norm, conv)), True, "head"),
    "spectral norm": (lambda: Net(parametrizations.spectral_norm(linear())), False, "head"),
    "spectral norm, old": (lambda: Net(old(nn.utils.spectral_norm)), False, "head"),
    "orthogonal": (lambda: Net(parametrizations.orthogonal(linear(), orthogonal_map="matrix_exp")), False, "head"),
    "custom scale": (lambda: Net(under(TimesBack())), True, "head"),
    "custom scale without a way back": (lambda: Net(under(Times())), False, "head"),
    "two parametrizations": (lambda: Net(under(TimesBack(), parametrizations.weight_norm(linear()))), True, "head"),
    "pruned": (lambda: Net(prune.l1_unstructured(linear(), "weight", amount=0.5)), False, "head"),
    "made by own code": (Raw, False, "head"),
    "cosine": (lambda: Net(Cosine()), False, "head.weight"),
    "cosine, fixed": (lambda: Net(Cosine(learned=False)), False, "head.weight"),
    "cosine, a Linear": (lambda: Net(CosineLinear(24, 10)), False, "head"),
    "LoRA": (lambda: Net(Lora()), False, "head.base_layer"),
    "LoRA, a Linear": (lambda: Net(LoraLinear()), False, "head"),
    "tied": (Tied, False, "classes"),
    "standardized conv": (lambda: ConvNet(Standardized(8, 10, 1)), False, "head"),
    "padding conv": (lambda: ConvNet(Padded(8, 10, 1)), True, "head"),
    "log softmax behind": (lambda: Net(nn.Sequential(linear(), nn.LogSoftmax(1))), True, "head.0"),
    "BatchNorm behind": (lambda: Net(nn.Sequential(linear(), nn.BatchNorm1d(10))), True, "head.0"),
    "temperature behind": (lambda: Net(Tempered()), True, "head.inner"),
}


def make_run() -> Run:
    return Run(device="cpu", precision="fp32", quiet=True)


def quick(name: str) -> Repair:
    cls = REPAIRS[name]
    counts = {f.name: f.default for f in dataclasses.fields(cls) if f.name in ("epochs", "rounds", "iterations", "steps")}
    return cls.from_config(QUICK.get(name) or {n: min(v, 1) for n, v in counts.items() if type(v) is int})


@pytest.fixture(scope="module")
def clean(digits: Data) -> Split:
    return digits.train.sample(120, seed=3, stratified=True)


@pytest.fixture(params=sorted(REPAIRS))
def name(request) -> str:
    return request.param


def fresh(kind: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return KINDS[kind][0]()


def outcome_of(name: str, model: nn.Module, clean: Split, layer: str) -> tuple[nn.Module | None, str]:
    """The repaired model and its status, or None and the message of a refusal."""
    run = make_run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = ""
        try:
            fixed = quick(name).repair(model, clean, run)
        except InputError as error:
            message = str(error)
    if message:
        # a pruning method may also say that the network has nothing that it prunes, wherever its layers are
        assert f"'{layer}" in message or "has no BatchNorm" in message
        return None, message
    assert run.outcome is not None
    return fixed, run.outcome.status


def answers(model: nn.Module, clean: Split) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(to_input(clean.x))


def head_map(head: nn.Module) -> torch.Tensor:
    """What a layer multiplies its input with, measured by its answers: no name of a tensor is trusted."""
    conv = isinstance(head, nn.Conv2d)
    width = head.in_channels if conv else head.in_features
    x = torch.cat([torch.zeros(1, width), torch.eye(width)])
    with torch.no_grad():
        out = head(x[..., None, None])[:, :, 0, 0] if conv else head(x)
    return (out[1:] - out[:1]).T


@pytest.mark.parametrize("kind", KINDS)
def test_it_works_or_it_refuses_and_names_the_layer(name: str, kind: str, clean: Split):
    model = fresh(kind)
    answers(model, clean)  # the old weight norm keeps a result of this
    before = {k: v.clone() for k, v in model.state_dict().items()}
    was = answers(model, clean)
    fixed, status = outcome_of(name, model, clean, KINDS[kind][2])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(answers(model, clean), was)
    if fixed is None:
        assert name not in ("ft", "ft_sam", "sau")  # training reaches every kind
        return
    changed = not torch.equal(answers(fixed, clean), was)
    assert changed or status != "repaired"
    if name in LEARNS:
        assert (status, changed) == ("repaired", True)
    if name in WRITES:
        assert KINDS[kind][1], "a head whose weight can't be written was not refused"
        where = KINDS[kind][2]
        old_map, new_map = head_map(model.get_submodule(where)), head_map(fixed.get_submodule(where))
        cosine = F.cosine_similarity(new_map.flatten(), old_map.flatten(), dim=0)
        assert float(cosine) < 0.6  # both begin anew
        torch.testing.assert_close(new_map.norm(), old_map.norm(), rtol=1e-3, atol=1e-5)  # on the sphere, really


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("kind", [k for k, (_, writable, _) in KINDS.items() if writable])
def test_a_head_that_can_be_written_is_not_refused(name: str, kind: str, clean: Split):
    assert outcome_of(name, fresh(kind), clean, KINDS[kind][2])[0] is not None


# sources of a whole model


def plain() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(linear()).eval()


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear})


def lazily() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Net(nn.LazyLinear(10))


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(plain())


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "quantized": (quantized, r"layer 'body.1' \(Linear\) is quantized, .*repair before quantizing"),
    "lazy": (lazily, r"layer 'head' \(LazyLinear\) is lazy .*run one batch"),
    "meta": (lambda: plain().to("meta"), r"layer 'body.1' \(Linear\) lies on the device 'meta'"),
    "TorchScript": (scripted, r"TorchScript; repair the nn.Module"),
    "eight bits": (
        lambda: plain().requires_grad_(False).apply(
            lambda m: isinstance(m, nn.Linear) and setattr(m, "weight", nn.Parameter(m.weight.data.char(), requires_grad=False))
        ),
        r"layer 'body.1' \(Linear\) is quantized",
    ),
}  # fmt: skip


@pytest.mark.parametrize("source", REFUSED)
def test_a_model_without_weights_to_change_is_refused(name: str, source: str, clean: Split):
    make, message = REFUSED[source]
    with pytest.raises(InputError, match=message):
        quick(name).repair(make(), clean, make_run())


def test_float_functional_of_torch_ao_is_not_quantized(name: str, clean: Split):
    """It is what a network that will be quantized later holds."""
    model = plain()
    model.add = torch.ao.nn.quantized.FloatFunctional()
    fixed, status = outcome_of(name, model, clean, "head")
    assert fixed is not None
    assert status == "repaired" or name not in LEARNS


def test_a_data_parallel_model_is_repaired_as_the_module_inside(name: str, clean: Split):
    inside = plain()
    fixed, _ = outcome_of(name, nn.DataParallel(inside), clean, "head")
    again, _ = outcome_of(name, inside, clean, "head")
    assert type(fixed) is Net
    assert torch.equal(answers(fixed, clean), answers(again, clean))


def test_a_compiled_model_is_repaired_as_it_was_written(name: str, clean: Split):
    compiled = torch.compile(plain(), backend="eager")
    answers(compiled, clean)  # hooks that come now are not seen by compiled code
    fixed, _ = outcome_of(name, compiled, clean, "head")
    again, _ = outcome_of(name, plain(), clean, "head")
    torch.testing.assert_close(answers(fixed, clean), answers(again, clean))


@pytest.mark.parametrize("name", WRITES)
def test_a_frozen_head_is_refused_because_it_could_not_learn_again(name: str, clean: Split):
    model = plain()
    model.head.requires_grad_(False)
    _, message = outcome_of(name, model, clean, "head")
    assert "is frozen" in message


def test_weights_with_odd_strides_are_repaired(name: str, clean: Split):
    model, plain_one = plain(), plain()
    with torch.no_grad():
        model.head.weight = nn.Parameter(plain_one.head.weight.T.contiguous().T)
    assert model.head.weight.stride() == (1, 10)
    fixed, status = outcome_of(name, model, clean, "head")
    assert fixed is not None
    assert status == "repaired" or name not in LEARNS


def test_a_hook_that_holds_a_lock_is_named(name: str, clean: Split):
    import threading

    model = plain()
    model.guard = threading.Lock()
    with pytest.raises(InputError, match=r"model can't be copied \(guard of Net\): cannot pickle"):
        quick(name).repair(model, clean, make_run())


def test_hooks_and_generators_come_along(name: str, clean: Split):
    model, calls = plain(), []
    model.draws = torch.Generator().manual_seed(3)
    model.head.register_forward_hook(lambda *_: calls.append(1))
    fixed, _ = outcome_of(name, model, clean, "head")
    assert fixed is not None
    assert len(fixed.head._forward_hooks) == 1
    with suppress(AttributeError):
        assert fixed.draws is not model.draws


def test_a_copy_of_a_repaired_model_can_be_repaired_again(name: str, clean: Split):
    """The old weight norm leaves the result of a computation in the module, which deepcopy refuses."""
    model = fresh("weight norm, old")
    once, _ = outcome_of(name, model, clean, "head")
    if once is not None:
        once(to_input(clean.x[:2]))
        assert outcome_of(name, copy.copy(once), clean, "head")[0] is not None
