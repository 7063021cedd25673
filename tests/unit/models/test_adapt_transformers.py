"""``transformers`` image classifiers, built from small configurations; nothing is downloaded."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

import theriac as th
from theriac.core.errors import InputError
from theriac.models import adapt, classifier, features, to_input

transformers = pytest.importorskip("transformers")


SMALL = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "num_labels": 10,
}


def tiny_vit() -> torch.nn.Module:
    config = transformers.ViTConfig(**SMALL, num_hidden_layers=2)
    return transformers.ViTForImageClassification(config).eval()


def tiny_resnet() -> torch.nn.Module:
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10
    )
    return transformers.ResNetForImageClassification(config).eval()


def tiny_deit() -> torch.nn.Module:
    """Of a type that has two classes of image classifiers."""
    config = transformers.DeiTConfig(**SMALL, num_hidden_layers=1)
    return transformers.DeiTForImageClassification(config).eval()


MODELS = {
    "vit": (tiny_vit, "net.classifier", 16),
    "deit": (tiny_deit, "net.classifier", 16),
    "resnet": (tiny_resnet, "net.classifier.1", 16),
}


@pytest.fixture(params=MODELS)
def hf(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, str, int]:
    make, layer, width = MODELS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(), layer, width


def test_it_agrees_with_the_raw_model(hf: tuple, digits: th.Data):
    raw, layer, width = hf
    model = adapt(raw, mean=0.5, std=0.25, card=digits.card)
    x = to_input(digits.test.x[:16])
    with torch.no_grad():
        expected = raw(pixel_values=(x.expand(-1, raw.config.num_channels, -1, -1) - 0.5) / 0.25).logits
        torch.testing.assert_close(model(x), expected)
        logits, embedding = features(model)(x)
    assert model.net is raw
    assert features(model).layer == layer
    assert embedding.shape == (16, width)
    torch.testing.assert_close(classifier(model)[1](embedding), logits)


def test_other_sizes_are_resized_to_the_configurations(digits: th.Data):
    raw = tiny_vit()
    model = adapt(raw)
    assert model.card.shape == (1, 8, 8)
    assert model.card.classes[:2] == ("LABEL_0", "LABEL_1")
    x = torch.rand(2, 1, 20, 20)
    small = torch.nn.functional.interpolate(x, (8, 8), mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(model(x), raw(small).logits)


def test_a_repair_keeps_the_class_and_the_given_model(hf: tuple, digits: th.Data):
    raw, _, _ = hf
    model = adapt(raw, mean=0.5, std=0.25, card=digits.card)
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="no better than guessing"):  # it is untrained
        fixed = th.repairs.FT(epochs=1, batch_size=32).repair(model, digits.train.sample(64))
    assert type(fixed.net) is type(raw)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not torch.equal(classifier(fixed)[1].weight, classifier(model)[1].weight)


def test_it_comes_back_from_its_configuration_with_the_same_logits(hf: tuple, digits: th.Data, tmp_path: Path):
    raw, _, _ = hf
    model = adapt(raw, mean=0.5, std=0.25, card=digits.card)
    again = th.load_model(th.save(model, tmp_path))
    assert type(again.net) is type(raw)
    x = to_input(digits.test.x[:16])
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    ours, theirs = again.net.config.to_dict(), raw.config.to_dict()
    assert {k: v for k, v in ours.items() if k != "architectures"} == {k: v for k, v in theirs.items() if k != "architectures"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("type",), "timm_wrapper", "unknown transformers model type 'timm_wrapper'"),
        (("type",), ["vit"], "unknown transformers model type"),
        (("attention",), "someone/kernel", "attention is 'someone/kernel'; expected one of"),
        (("config", "auto_map"), {"AutoModelForImageClassification": "evil--x.Y"}, "unknown field of a vit configuration"),
        (("config", "_name_or_path"), "someone/model", "unknown field of a vit configuration"),
        (("config", "num_hidden_layers"), 10**6, "num_hidden_layers = 1000000, but the weights are only"),
        (("config", "hidden_size"), 10**9, "field hidden_size of the transformers configuration is '1000000000'"),
        (("config", "hidden_size"), 2**18, "do not fit the model: shapes differ"),
        (("config", "hidden_size"), "wide", "transformers configuration"),
        (("config", "hidden_act"), "no_such", "makes no model"),
        (("config", "id2label"), {str(k): "x" * 3000 for k in range(1500)}, "larger than 4,194,304 bytes"),
        (("config", "depths"), [1, 1], "unknown field of a vit configuration 'depths'"),
        (("config", "y" * 10**6), 1, "unknown field of a vit configuration"),
        (("config",), None, "is not one that Theriac wrote"),
    ],
)
def test_a_hostile_configuration_is_refused(digits: th.Data, tmp_path: Path, path: tuple, value: object, message: str):
    th.save(adapt(tiny_vit(), card=digits.card), tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    place = record["model"]["options"]["transformers"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError) as caught:
        th.load_model(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_subclass_of_the_users_own_is_asked_for(digits: th.Data, tmp_path: Path):
    class MyViT(transformers.ViTForImageClassification):
        pass

    model = adapt(MyViT(tiny_vit().config).eval(), card=digits.card)
    th.save(model, tmp_path)
    with pytest.raises(InputError, match=r"this is an adapted .*MyViT; hand in a fresh one"):
        th.load_model(tmp_path)
    again = th.load_model(tmp_path, into=MyViT(tiny_vit().config))
    x = to_input(digits.test.x[:4])
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
