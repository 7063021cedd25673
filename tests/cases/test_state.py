"""State that is not plain tensors: it is saved and comes back the same, or a sentence says so before any work."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

import theriac as th
from theriac.core.errors import InputError, UneditableError
from theriac.core.run import Run
from theriac.core.split import Data
from theriac.models import adapt, check_savable, load_model, load_weights, save
from theriac.models.store import digest
from theriac.repairs import FT

pytestmark = pytest.mark.filterwarnings("ignore:the model gets")  # many of these have not learned anything

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Ten classes, and anything else as ``more``."""

    def __init__(self, more: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.head, self.more = nn.Linear(64, 24), nn.Linear(24, 10), more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x.flatten(1))))


class Remembers(nn.Module):
    def __init__(self, memory: Any) -> None:
        super().__init__()
        self.memory = memory

    def get_extra_state(self) -> Any:
        return self.memory

    def set_extra_state(self, state: Any) -> None:
        self.memory = state


def wrapped(net: nn.Module, digits: Data) -> th.models.Adapted:
    return adapt(net, card=digits.card).eval()


def quietly(run_folder: Path | None = None) -> Run:
    return Run(device="cpu", precision="fp32", quiet=True, folder=run_folder)


def identical(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and len(first) == len(second) and all(map(identical, first, second))
    if isinstance(first, dict):
        return list(first) == list(second) and all(identical(first[k], second[k]) for k in first)
    return type(first) is type(second) and first == second


# extra state

PLAIN = [
    {"step": 3, "scale": 0.5, "name": "ü", "none": None, "on": True},
    b"\x00\xffbytes",
    torch.arange(4.0),
    {"history": [torch.ones(2), (torch.zeros(()), 1)], "nested": {"raw": b"x"}},
    [1, [2, (3, "x")]],
    "text",
    7,
    None,
]


@pytest.mark.parametrize("memory", PLAIN, ids=lambda m: type(m).__name__)
def test_extra_state_comes_back_as_it_was(memory: Any, digits: Data, tmp_path: Path):
    model = wrapped(Net(Remembers(memory)), digits)
    check_savable(model)
    again = load_model(save(model, tmp_path), into=Net(Remembers("another")))
    assert identical(again.net.more.memory, memory)
    assert torch.equal(again(X), model(X))
    twice = load_model(save(again, tmp_path / "2"), into=Net(Remembers(0)))
    assert identical(twice.net.more.memory, memory)


@pytest.mark.parametrize(
    "memory",
    [object(), {1: 2}, {"x": {1, 2}}, [lambda: 0], float("nan"), {"__bytes__": "x"}, torch.zeros(2, dtype=torch.complex128)],
)
def test_extra_state_that_is_no_plain_data_is_refused_and_leaves_nothing(memory: Any, digits: Data, tmp_path: Path):
    model = wrapped(Net(Remembers(memory)), digits)
    for attempt in (lambda: check_savable(model), lambda: save(model, tmp_path)):
        with pytest.raises(InputError, match=r"net\.more"):
            attempt()
    assert not list(tmp_path.iterdir())


def test_training_and_repairs_say_before_work_that_a_model_can_not_be_saved(digits: Data):
    model, rows = wrapped(Net(Remembers(object())), digits), digits.train.sample(60, seed=0)
    run = quietly()
    for work in (
        lambda: th.train(model, rows, recipe="short_1", run=run),
        lambda: FT(epochs=1).repair(model, rows, run),
    ):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            assert isinstance(work(), nn.Module)
        assert any(str(w.message).startswith("theriac.save will refuse this model: layer 'net.more'") for w in heard)


def test_a_run_with_checkpoints_refuses_at_once_what_it_could_not_read_again(digits: Data, tmp_path: Path):
    with pytest.raises(InputError, match=r"layer 'more' returns a object"):
        th.train(Net(Remembers(object())), digits.train.sample(60, seed=0), recipe="short_1", run=quietly(tmp_path))
    assert not list(tmp_path.glob("*.checkpoint.pt"))


def test_a_run_with_extra_state_goes_on_from_its_checkpoint(digits: Data, tmp_path: Path):
    rows = digits.train.sample(60, seed=0)
    first = FT(epochs=1).repair(Net(Remembers({"a": 1})), rows, quietly(tmp_path))
    with torch.random.fork_rng():
        other = Net(Remembers({"a": 2}))
    other.load_state_dict({**first.state_dict(), "more._extra_state": {"a": 2}})
    with pytest.raises(InputError, match="belongs to another configuration"):
        FT(epochs=1).repair(other, rows, quietly(tmp_path))


@pytest.mark.parametrize(
    "extra",
    [
        "x",
        {"net.more": 1},
        {"net.more._extra_state": {"__tensor__": "no"}},
        {"a._extra_state": 1},
        {"net.more._extra_state": {"__bytes__": 3}},
        {"net.more._extra_state": {"__tuple__": 3}},
    ],
)
def test_damaged_extra_state_is_refused(extra: Any, digits: Data, tmp_path: Path):
    save(wrapped(Net(Remembers({"a": 1})), digits), tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    record["weights"]["extra_state"] = extra
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"extra state|do not fit"):
        load_model(tmp_path, into=Net(Remembers(0)))


def test_extra_state_is_not_forced_on_our_own_networks(digits: Data, tmp_path: Path):
    save(th.models.build("wrn_16_1", digits.train), tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    record["weights"]["extra_state"] = {"net._extra_state": {"a": 1}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"unexpected net\._extra_state"):
        load_model(tmp_path)


# quantized


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear})


def test_a_quantized_model_is_used_and_refused_by_save_in_a_sentence(digits: Data, tmp_path: Path):
    model = wrapped(quantized(), digits)
    assert 0 <= th.evaluate(model, digits.test, run=quietly()).acc.value <= 1
    with pytest.raises(InputError, match=r"layer 'net\.\S+' keeps a \w+ in its state .*save the model before quantizing"):
        save(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_quantized_tensor_is_refused_by_name(digits: Data, tmp_path: Path):
    net = Net()
    net.register_buffer("table", torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8))
    with pytest.raises(InputError, match=r"'net\.table', of layer 'net', is sparse, quantized or nested"):
        check_savable(wrapped(net, digits))


# lazy layers and the device meta


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.body = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten())
            self.head = nn.LazyLinear(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_loaded_into_lazy_layers(dtype: torch.dtype, digits: Data, tmp_path: Path):
    model = wrapped(Lazy(), digits)
    model.net.to(dtype)
    again = load_model(save(model, tmp_path), into=Lazy())
    assert torch.equal(again(X), model(X))
    assert [type(m).__name__ for m in again.net.modules()] == [type(m).__name__ for m in model.net.modules()]
    assert again.net.head.in_features == model.net.head.in_features
    fixed = FT(epochs=1).repair(load_model(tmp_path, into=Lazy()), digits.train.sample(60, seed=0), quietly())
    assert not torch.equal(fixed(X), model(X))


def test_lazy_layers_of_another_width_are_refused(digits: Data, tmp_path: Path):
    save(wrapped(Net(), digits), tmp_path)
    with pytest.raises(InputError, match="do not fit"):
        load_model(tmp_path, into=Lazy())


def test_training_takes_lazy_layers(digits: Data):
    assert th.train(Lazy(), digits.train.sample(60, seed=0), recipe="short_1", run=quietly())(X).shape == (6, 10)


def test_a_lazy_model_is_not_saved(digits: Data):
    card = digits.card.replace(size=(0, 0))
    model = adapt(Lazy(), card=card, classes=10)
    with pytest.raises(InputError, match=r"'net\.body\.0\.weight'.* is lazy and has no numbers yet; run one batch"):
        check_savable(model)


def test_a_model_on_the_device_meta_is_refused_in_a_sentence(digits: Data, tmp_path: Path):
    with torch.device("meta"):
        net = Net()
    save(wrapped(Net(), digits), tmp_path)
    for attempt in (
        lambda: adapt(net, card=digits.card),
        lambda: th.train(net, digits.train.sample(60, seed=0), run=quietly()),
        lambda: load_model(tmp_path, into=net),
        lambda: FT().repair(net, digits.train.sample(60, seed=0), quietly()),
    ):
        with pytest.raises(
            UneditableError, match=r"layer '(net\.)?body' \(Linear\) lies on the device 'meta' and has no numbers"
        ):
            attempt()


# copies


def test_a_model_with_the_old_weight_norm_is_trained_and_repaired_after_a_forward_pass(digits: Data):
    rows = digits.train.sample(60, seed=0)
    net = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(net.head)
        nn.utils.spectral_norm(net.body)
    net(X).sum().backward()
    result = net.head.weight
    for again in (FT(epochs=1).repair(net, rows, quietly()), th.train(net, rows, recipe="short_1", run=quietly())):
        again(X)
        assert type(again) is Net
    assert net.head.weight is result


@pytest.mark.parametrize("kind", ["lock", "file", "iterator"])
def test_what_can_not_be_copied_is_named(kind: str, digits: Data, tmp_path: Path):
    import threading

    net = Net(nn.Identity())
    with (tmp_path / "log").open("w") as file:
        net.more.keeper = {"lock": threading.Lock(), "file": file, "iterator": (i for i in range(3))}[kind]
        for attempt in (
            lambda: FT(epochs=1).repair(net, digits.train.sample(60, seed=0), quietly()),
            lambda: th.train(net, digits.train.sample(60, seed=0), run=quietly()),
        ):
            with pytest.raises(InputError, match=r"(model|build) can't be copied \(keeper of 'more', a Identity\)"):
                attempt()


# tied tensors


class Tied(nn.Module):
    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        if tie:
            self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x.flatten(1)).relu()))


def test_tied_weights_are_tied_again(digits: Data, tmp_path: Path):
    model = wrapped(Tied(), digits)
    with torch.no_grad():
        model.net.first.weight[0, 0] = float("nan")  # equal to itself all the same
    again = load_model(save(model, tmp_path), into=Tied())
    assert again.net.second.weight is again.net.first.weight
    assert torch.equal(again.net.first.weight.nan_to_num(), model.net.first.weight.nan_to_num())


def test_two_weights_are_not_pressed_into_a_tied_one(digits: Data, tmp_path: Path):
    model = wrapped(Tied(tie=False), digits)
    into = Tied()
    before = into.first.weight.clone()
    with pytest.raises(
        InputError, match=r"one tensor in the model, two in the file: net\.first\.weight and net\.second\.weight"
    ):
        load_model(save(model, tmp_path), into=into)
    with pytest.raises(InputError, match=r"first\.weight and second\.weight"):
        load_weights(into, model.net.state_dict())
    assert torch.equal(into.first.weight, before)


def test_tied_weights_stay_tied_in_a_repair(digits: Data):
    fixed = FT(epochs=1).repair(Tied(), digits.train.sample(60, seed=0), quietly())
    assert fixed.second.weight is fixed.first.weight


# strides


class Odd(nn.Module):
    """Weights and buffers laid out in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3)
        self.wide = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8 * 36, 10)
        self.register_buffer("turned", torch.randn(3, 4, 5, 6))

    def lay(self) -> Odd:
        self.head.weight.data = self.head.weight.data.T.contiguous().T
        self.conv.weight.data = self.conv.weight.data.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
        self.turned = self.turned.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.wide(self.conv(x)).relu().flatten(1))


def strides(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {k: v.stride() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("channels_last", [False, True])
def test_odd_strides_come_back_and_with_them_every_bit(channels_last: bool, digits: Data, tmp_path: Path):
    net = Odd()
    if channels_last:
        net.to(memory_format=torch.channels_last)
    model = wrapped(net.lay(), digits)
    assert model.net.head.weight.stride() == (1, 10)
    again = load_model(save(model, tmp_path), into=Odd())
    assert strides(again) == strides(model)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    assert torch.equal(again(X), model(X))
    assert all(p.requires_grad and p.is_leaf for p in again.parameters())


@pytest.mark.parametrize(
    "value",
    [
        "x",
        [1],
        {"net.head.weight": [1]},
        {"net.head.weight": [1, 10**12]},
        {"no": [1, 10]},
        {"net.head.weight": [0, 0]},
        {"net.head.weight": [True, 10]},
        {"net.head.weight": [-1, 10]},
    ],
)
def test_strides_that_ask_for_memory_are_refused(value: Any, digits: Data, tmp_path: Path):
    save(wrapped(Odd().lay(), digits), tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    record["weights"]["strides"] = value
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="strides of"):
        load_model(tmp_path, into=Odd())


def test_plain_networks_record_no_strides(digits: Data, tmp_path: Path):
    save(th.models.build("wrn_16_1", digits.train), tmp_path)
    assert set(json.loads((tmp_path / "run.json").read_text())["weights"]) == {"sha256", "layout"}


def test_an_expanded_weight_comes_back_with_memory_of_its_own(digits: Data, tmp_path: Path):
    net = Net()
    net.head.weight = nn.Parameter(torch.randn(1, 24).expand(10, 24))
    model = wrapped(net, digits)
    again = load_model(save(model, tmp_path), into=Net())
    torch.testing.assert_close(again(X), model(X))


# tensors of every kind


BUFFERS = {
    "complex": torch.randn(3, dtype=torch.complex64),
    "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
    "float8": torch.randn(4).to(torch.float8_e4m3fn),
    "bool": torch.tensor([True, False]),
    "whole": torch.arange(3),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "nan": torch.tensor([float("nan"), float("inf")]),
    "bytes": torch.arange(3, dtype=torch.uint8),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_every_kind_of_buffer_comes_back(kind: str, digits: Data, tmp_path: Path):
    def net(value: torch.Tensor) -> nn.Module:
        made = Net()
        made.register_buffer("value", value)
        made.register_buffer("passing", torch.ones(2), persistent=False)
        return made

    model = wrapped(net(BUFFERS[kind]), digits)
    again = load_model(save(model, tmp_path), into=net(torch.zeros_like(BUFFERS[kind])))
    came, was = again.net.value, BUFFERS[kind].resolve_conj()
    assert came.dtype == was.dtype
    assert came.shape == was.shape
    assert torch.equal(came.float() if kind == "float8" else came.nan_to_num() if kind == "nan" else came,
                       was.float() if kind == "float8" else was.nan_to_num() if kind == "nan" else was)  # fmt: skip
    assert "net.passing" not in load_file(tmp_path / "model.safetensors")
    fixed = FT(epochs=1).repair(model, digits.train.sample(60, seed=0), quietly(tmp_path / "run"))  # with a fingerprint of it
    assert fixed.net.value.dtype == was.dtype


def test_a_type_that_the_file_has_no_place_for_is_refused_by_name(digits: Data):
    net = Net()
    net.register_buffer("value", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(InputError, match=r"'net\.value', of layer 'net', holds torch\.complex128"):
        check_savable(wrapped(net, digits))


def test_a_sparse_buffer_is_refused_by_name(digits: Data):
    net = Net()
    net.register_buffer("value", torch.eye(3).to_sparse())
    with pytest.raises(InputError, match=r"'net\.value', of layer 'net', is sparse"):
        check_savable(wrapped(net, digits))


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.größe = nn.Linear(64, 10)
        self.steps = nn.ParameterList([nn.Parameter(torch.randn(2)) for _ in range(2)])
        self.named = nn.ParameterDict({"a b": nn.Parameter(torch.randn(2)), "ß": nn.Parameter(torch.randn(()))})
        self.parts = nn.ModuleDict({"x-1": parametrizations.weight_norm(nn.Linear(2, 2)), "ℓ": nn.GRU(2, 2)})
        prune.l1_unstructured(self.größe, "weight", amount=0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.größe(x.flatten(1))


def test_lists_dicts_and_names_in_any_script_come_back(digits: Data, tmp_path: Path):
    model = wrapped(Lists(), digits)
    again = load_model(save(model, tmp_path), into=Lists())
    assert list(again.state_dict()) == list(model.state_dict())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    assert torch.equal(again(X), model(X))


def test_a_file_with_the_hash_of_another_is_refused_before_anything_is_loaded(digits: Data, tmp_path: Path):
    model = wrapped(Net(Remembers({"a": torch.ones(2)})), digits)
    save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "#" not in k}, file)  # the tensor inside the extra state
    record = json.loads((tmp_path / "run.json").read_text())
    record["weights"]["sha256"] = digest(file)
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"extra state in .* is damaged"):
        load_model(tmp_path, into=Net(Remembers(0)))
