"""Edits that did not reach the function: each situation either works like the plain layer now, or is refused with its name."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import theriac as th
from theriac.attacks import BadNets, TrojanNN
from theriac.core.errors import InputError, UneditableError
from theriac.core.run import Run
from theriac.core.split import Data
from theriac.models import classifier, features, to_input
from theriac.models.editing import Weight, editable
from theriac.repairs import AGE, D3, FST, FT, SAU
from theriac.repairs._repulsion import Repulsion
from theriac.repairs.age.edits import contrast, edit
from theriac.training import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:the model gets")  # many of these have not learned anything

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU())
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class Cosine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 16 * F.linear(F.normalize(x), F.normalize(self.weight))


def made(head, width: int = 24) -> Net:
    """A network with the same numbers in every plain layer, whatever is done to its head."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        return Net(head(nn.Linear(width, 10))).eval()


def same(layer: nn.Module) -> nn.Module:
    return layer


NORMED = {"new": parametrizations.weight_norm, "old": nn.utils.weight_norm}


@pytest.fixture(scope="module")
def poisoned(digits: Data):
    return BadNets(target=0, poison_rate=0.1).poison(digits.train)


def trained(net: nn.Module, rows, **options: object) -> nn.Module:
    recipe = Recipe(epochs=8, batch_size=64, lr=0.1, augment="none", **options)
    return th.train(net, rows, recipe=recipe, run=Run(device="cpu", precision="fp32", quiet=True))


# weight and spectral norm


@pytest.mark.parametrize("how", NORMED)
@pytest.mark.parametrize("init", ["random", "far", "noise", "torch", "near"])
def test_a_weight_normed_head_starts_and_is_projected_as_a_plain_one(how: str, init):
    plain, normed = made(same), made(NORMED[how])
    torch.testing.assert_close(normed(X), plain(X))
    for net in (plain, normed):
        pushed = Repulsion(net, "classifier", example=X)
        pushed.start(init, torch.Generator().manual_seed(1))
        with torch.no_grad():
            pushed.weights["head"].write(3 * pushed.weights["head"].value)
        pushed.project()
        net.pushed = pushed.distance().detach()
    torch.testing.assert_close(normed(X), plain(X))
    torch.testing.assert_close(normed.pushed, plain.pushed)


@pytest.mark.parametrize("how", NORMED)
@pytest.mark.parametrize("rule", ["zero_active", "zero_changed", "damp", "zero_decisive", "project_target", "project"])
def test_age_edits_a_weight_normed_head_as_a_plain_one(how: str, rule: str):
    plain, normed = made(same), made(NORMED[how])
    f, r = torch.rand(20, 24), torch.rand(20, 24) * torch.linspace(0.2, 1, 24)
    held = [edit(rule, net.head, contrast(f, r), 0.5, target=3) for net in (plain, normed)]
    torch.testing.assert_close(normed(X), plain(X))
    for net in (plain, normed):
        with torch.no_grad():
            Weight(net.head).write(Weight(net.head).value + 0.1)
    for edited in held:
        edited.restore()
    torch.testing.assert_close(normed(X), plain(X))


@pytest.mark.parametrize("how", NORMED)
def test_fst_reduces_the_backdoor_behind_a_weight_normed_head(how: str, poisoned, digits: Data):
    run = Run(device="cpu", precision="fp32", quiet=True)
    victim = trained(made(NORMED[how]), poisoned)
    victim.card = digits.card
    before = th.evaluate(victim, digits.test, poisoned.planted, run=run)
    method = FST(epochs=20, lr=0.05, alpha=0.2)
    after = th.evaluate(method.repair(victim, digits.train.sample(0.2, seed=0), run), digits.test, poisoned.planted, run=run)
    assert before.asr.value > 0.8
    assert after.asr.value < before.asr.value - 0.3


@pytest.mark.parametrize("how", NORMED)
def test_d3_corrected_takes_a_weight_normed_head(how: str, digits: Data):
    run = Run(device="cpu", precision="fp32", quiet=True)
    model = trained(made(NORMED[how]), digits.train)
    fixed = D3.corrected().replace(epochs=1).repair(model, digits.train.sample(100, seed=0), run)
    assert run.outcome.status == "repaired"
    assert not torch.allclose(fixed(X), model(X))


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm, parametrizations.orthogonal])
@pytest.mark.parametrize("method", [FST(), D3(), D3.corrected(), AGE(knowledge="target", target=0, retrain="head")])
def test_a_norm_that_takes_no_given_weight_is_refused_with_its_cure(norm, method, digits: Data):
    model = made(norm)
    with pytest.raises(
        UneditableError, match=r"layer 'head' can't be edited: .*(remove_parametrizations|remove_spectral_norm)"
    ):
        method.repair(model, digits.train.sample(100, seed=0), Run(device="cpu", quiet=True))
    before = model(X)
    if parametrize.is_parametrized(model.head):
        parametrize.remove_parametrizations(model.head, "weight")
    else:
        nn.utils.remove_spectral_norm(model.head)
    torch.testing.assert_close(model(X), before)
    assert editable(model, "head").plain  # the cure works


def test_a_layer_among_all_layers_is_named(digits: Data):
    model = made(same)
    model.body[3] = parametrizations.spectral_norm(model.body[3])
    with pytest.raises(UneditableError, match=r"layer 'body\.3' can't be edited"):
        D3(layers="all").repair(model, digits.train.sample(100, seed=0), Run(device="cpu", quiet=True))


# quantized


@pytest.mark.parametrize("method", [FT(epochs=1), SAU(rounds=1)])
def test_a_statically_quantized_model_is_refused(method, digits: Data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ao = torch.ao.quantization
        net = nn.Sequential(ao.QuantStub(), nn.Flatten(), nn.Linear(64, 10), ao.DeQuantStub()).eval()
        net.qconfig = ao.default_qconfig
        model = ao.prepare(net)
        model(X)
        fixed = method.repair(model, digits.train.sample(60, seed=0), Run(device="cpu", quiet=True))  # not quantized yet
        assert not torch.equal(fixed(X), model(X))
        ao.convert(model, inplace=True)
    with pytest.raises(UneditableError, match=r"layer '0' \(Quantize\) is quantized.*repair before quantizing"):
        method.repair(model, digits.train.sample(60, seed=0), Run(device="cpu", quiet=True))


# which layer is the classifier


class TwoHeads(Net):
    """The mean of two heads, as a distilled transformer has it."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(24, 10))
        self.second = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x)
        return (self.head(h) + self.second(h)) / 2


class Auxiliary(Net):
    """A second head that runs last, and whose output is not used outside training."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(24, 10))
        self.aux = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.body(x))
        self.aux(self.body[:3](x))
        return logits


class Prototypes(nn.Module):
    """Minus the distance to a learned point for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(10, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -torch.cdist(x, self.points)


class TenWide(nn.Module):
    """A hidden layer that happens to be as wide as there are classes, and a cosine head."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.weight = nn.Linear(64, 10), nn.Parameter(torch.randn(10, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.normalize(self.hidden(x.flatten(1)).relu()), F.normalize(self.weight))


@pytest.mark.parametrize(
    ("net", "seen", "maker"),
    [
        (lambda: Net(Cosine()), "body.3", "head.weight"),
        (lambda: Net(Prototypes()), "body.3", "head.points"),
        (TenWide, "hidden", "weight"),
        (TwoHeads, "second", "head.bias"),
        (
            lambda: Net(nn.Sequential(nn.Linear(24, 10), nn.PReLU(), nn.Bilinear(10, 10, 10)) if False else Prototypes()),
            "body.3",
            "",
        ),
    ],
)
def test_a_hidden_layer_is_never_taken_for_the_classifier(net, seen: str, maker: str):
    with pytest.raises(InputError, match=rf"layer '{seen}' is the last linear one .*10 logits, which also come from '{maker}"):
        classifier(net(), example=X)
    with pytest.raises(InputError, match="name the layer that is meant"):
        features(net(), example=X[:1])
    assert features(net(), seen).layer == seen  # the caller may name one


@pytest.mark.parametrize(
    "behind",
    [
        nn.LogSoftmax(1),
        nn.Softmax(1),
        nn.BatchNorm1d(10),
        nn.ReLU(inplace=True),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Identity(),
        nn.Flatten(),
    ],
)
def test_what_only_processes_the_logits_changes_nothing(behind: nn.Module):
    net = Net(nn.Sequential(nn.Linear(24, 10), behind)).eval()
    assert classifier(net, example=X)[0] == "head.0"
    with torch.inference_mode():
        assert classifier(net, example=X)[0] == "head.0"
    assert all(p.requires_grad for p in net.parameters())


def test_a_head_whose_output_is_not_used_is_passed_over():
    assert classifier(Auxiliary(), example=X)[0] == "head"


def test_an_average_over_flipped_rows_has_one_classifier():
    class Flipped(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (super().forward(x) + super().forward(x.flip(-1))) / 2

    assert classifier(Flipped(nn.Linear(24, 10)), example=X)[0] == "head"


def test_frozen_parameters_stay_frozen_while_the_classifier_is_looked_for():
    net = Net(Cosine()).requires_grad_(False)
    with pytest.raises(InputError, match=r"head\.weight"):
        classifier(net, example=X)
    assert not any(p.requires_grad for p in net.parameters())


def test_fst_leaves_a_cosine_network_alone_and_takes_a_named_layer(digits: Data):
    rows, run = digits.train.sample(100, seed=0), Run(device="cpu", precision="fp32", quiet=True)
    model = Net(Cosine())
    with pytest.raises(InputError, match=r"name the layer"):
        FST(epochs=1).repair(model, rows, run)
    FST(epochs=1, layers="body.3").repair(model, rows, run)
    assert run.outcome.status == "repaired"
    method = AGE(knowledge="target", target=0, retrain="head", scope="body.3", per_class=2, epochs=1, rule="zero_changed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what forgetting a class shows
        method.repair(model, rows, run)
    assert run.outcome.status == "repaired"


def test_an_attack_that_looks_for_the_classifier_names_the_layer_too(digits: Data):
    def build(split, run):
        return Net(Cosine())

    with pytest.raises(InputError, match=r"'head\.weight'"):
        TrojanNN().train(build, digits.train.sample(100, seed=0), Run(device="cpu", quiet=True))


# weight decay under a parametrization


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weight_decay_leaves_an_orthogonal_head_alone_and_says_so(optimizer: str, digits: Data):
    how = {"weight_decay": 5e-4, "optimizer": optimizer}
    recipe = Recipe(epochs=5, batch_size=64, lr=0.05 if optimizer == "sgd" else 0.01, augment="none", **how)
    with pytest.warns(UserWarning, match=r"weight decay of 0\.0005 would bring the weight of layer 'head' to zero"):
        model = th.train(made(parametrizations.orthogonal), digits.train, recipe=recipe, run=Run(device="cpu", quiet=True))
    torch.testing.assert_close(model.head.weight @ model.head.weight.T, torch.eye(10), rtol=0, atol=1e-4)
    logits = model(to_input(digits.test.x))
    assert float((logits.argmax(1) == digits.test.y).float().mean()) > 0.5


def test_weight_decay_goes_on_where_it_does_no_harm(digits: Data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for norm in (parametrizations.weight_norm, parametrizations.spectral_norm, same):
            with_decay, without = (
                trained(made(norm), digits.train.sample(100, seed=0), weight_decay=decay) for decay in (5e-4, 0.0)
            )
            changed = [
                name for name, value in with_decay.named_parameters() if not torch.equal(value, without.get_parameter(name))
            ]
            assert any("head" in name for name in changed), f"decay did not reach the head under {norm}"
