"""A population of small networks, benign and poisoned, on which ``theriac scan`` is fitted and measured.

Train it, then measure it; both go on where a killed run was (what is there is skipped)::

    python benchmarks/population.py train --data cifar10=<folder> --data fashion_mnist=<folder>
    python benchmarks/population.py measure --data cifar10=<folder> --data fashion_mnist=<folder>

and fit the logistic model that is shipped, with the pages of what it reaches on the held-out part (seconds, no data needed)::

    python benchmarks/population.py fit

The same networks (but for two ways of training) are a spec of ``theriac bench``, which can be stopped, killed and distributed;
its store is measured into a table of its own::

    theriac bench benchmarks/specs/population.yaml --store runs/population_store
    python benchmarks/population.py measure --store runs/population_store --table population_sweep

``benchmarks/plans/population.yaml`` says which networks. Networks are kept in ``runs/population/``; each holds what was done to
it, its clean accuracy and its attack success on test rows. Jobs run in an order that is random but fixed, so that a part of
the population is a fair sample of it.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from table import RESULTS, Table
from torch import nn
from torch.nn import functional as F
from victims import machine

import theriac as th
import theriac.scanning
from theriac.bench import Store, make_plan, read_spec
from theriac.bench.plans import Loader
from theriac.core.files import read_json, write_atomically, write_json
from theriac.core.method import create
from theriac.data import disturbed
from theriac.metrics import brier, detection
from theriac.models import Builder, classifier, make, run_over
from theriac.scanning import calibration
from theriac.scanning.behavior import ROWS, look_at_behavior, look_at_inversion
from theriac.scanning.weights import look_at_weights, sorted_weights
from theriac.training import Batch, cross_entropy_step, loop, recipe

PLAN = Path(__file__).resolve().parent / "plans" / "population.yaml"
SPEC = PLAN.parents[1] / "specs" / "population.yaml"
AXES = ("set", "model", "recipe", "seed", "attack", "rate", "train", "control")
SHIPPED = Path(theriac.scanning.__file__).with_name("calibration.json")
LARGE = ("cifar32", "fashion28")  # sets of pictures of 28 and 32 pixels a side
LATEST = 10  # round whose networks were measured last, all of them fresh
FITTED = ("badnets", "blended", "tact", "wanet")  # attacks of the fitted part
WORKS = 0.5  # attack success, less what goes to the target without the trigger, from which on a network counts as backdoored
SORTED_STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)  # of the classifier on sorted weights; chosen there, too
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # inverse of the penalty; chosen on the fitted part
WEIGHTS = ("channel_peak", "head_sum", "head_length", "head_peak", "head_bias", "probe_share", "sorted_weights")
BEHAVIOR = ("excess", "patch_lead")
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "badnets_all_to_all": ("badnets", {"mode": "all_to_all"}),
    "badnets_6": ("badnets", {"side": 6}),
    "badnets_checker": ("badnets", {"pattern": "checker", "side": 3, "margin": 1}),
    "badnets_faint": ("badnets", {"opacity": 0.5, "side": 3}),
    "noise": ("blended", {"trigger": "noise", "alpha": 0.3}),
    "ftrojan_strong": ("ftrojan", {"magnitude": 100.0}),
    "sig_strong": ("sig", {"delta": 80.0}),
    "wanet_strong": ("wanet", {"strength": 1.0, "cross_ratio": 0.5}),
    "wanet_4": ("wanet", {"strength": 4.0, "cross_ratio": 1.0}),
    "tact_covered": ("tact", {"cover_rate": 0.05}),
    "input_aware": ("input_aware", {"mask_epochs": 0}),
}


def exact(seed: int = 0) -> th.Run:
    """In float32, whatever the processor has: the pages say so."""
    return th.Run(seed=seed, precision="fp32", quiet=True)


def jobs(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """All networks of a plan, in an order that is random but fixed."""
    made: dict[str, dict[str, Any]] = {}
    for group in plan["groups"]:
        axes = [axis for axis in AXES if axis in group]
        for values in itertools.product(*(group[axis] for axis in axes)):
            job = {"part": group["part"], **dict(zip(axes, values, strict=True))}
            key = "-".join(str(job[axis]) for axis in ("part", *axes))
            made[key] = {"key": key, **job, "round": group.get("round", 1)}
    return sorted(made.values(), key=lambda job: hashlib.sha256(job["key"].encode()).hexdigest())


def data_of(name: str, plan: dict[str, Any], paths: dict[str, str]) -> th.Data:
    """A set of the plan: fewer rows, fewer classes or half the side of a known one."""
    options = plan["sets"][name]
    data = th.load(paths.get(options["load"], options["load"]))
    return th.Data(train=_reduced(data.train, options, options["rows"]), test=_reduced(data.test, options, 1500))


def _reduced(split: th.Split, options: dict[str, Any], rows: int) -> th.Split:
    classes = options.get("classes", split.num_classes)
    split = split.where(split.y < classes)
    if rows and rows < len(split):
        split = split.sample(rows, seed=0, stratified=True)
    if not options.get("halve") and classes == split.num_classes:
        return split
    x = split.x
    if options.get("halve"):
        x = F.avg_pool2d(x.float(), 2).round().to(torch.uint8)
    card = th.Card(
        name=f"{split.card.name}-small",
        classes=split.card.classes[:classes],
        size=(x.shape[2], x.shape[3]),
        channels=x.shape[1],
    )
    return th.Split(x, split.y, card=card)


def adversarial_step(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy on rows moved by one signed-gradient step of 8 levels."""
    x = batch.x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(x), batch.y), x)
    moved = (batch.x + 8 / 255 * slope.sign()).clamp(0, 1)
    return F.cross_entropy(model(moved), batch.y)


def even_head_step(model: nn.Module, batch: Batch) -> Any:
    """Cross-entropy, and a penalty on rows of the head whose sum, length or bias differs from the others'."""
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    sums, lengths = head.weight.sum(1), head.weight.norm(dim=1)
    uneven = sums.var() + lengths.var() + (0.0 if head.bias is None else head.bias.var())
    return F.cross_entropy(model(batch.x), batch.y) + 1.0 * uneven


def attack_of(job: dict[str, Any], classes: int) -> Any:
    """The attack of a job, whose target is its seed modulo the number of classes."""
    if "config" in job:  # of a store
        config = dict(job["config"])
        return create("attack", config.pop("method"), **config)
    name, options = ATTACKS.get(job["attack"], (job["attack"], {}))
    target = {} if options.get("mode") else {"target": job["seed"] % classes}
    return create("attack", name, poison_rate=job["rate"], **target, **options)


def without_trigger(job: dict[str, Any], model: nn.Module, test: th.Split) -> float | None:
    """The share of the rows that attack success is counted on that go to the target without the trigger.

    A network that lost the source class reaches full "success" with no trigger at all. None where there is no one target.
    """
    attack = attack_of(job, test.num_classes)
    if not isinstance(getattr(attack, "target", None), int) or getattr(attack, "mode", "all_to_one") != "all_to_one":
        return None
    sources = torch.tensor(getattr(attack, "sources", range(test.num_classes)))
    counted = torch.isin(test.y, sources) & (test.y != attack.target)
    return float((run_over(model, test, run=exact()).argmax(1).cpu() == attack.target)[counted].float().mean())


def trained(job: dict[str, Any], plan: dict[str, Any], data: th.Data) -> tuple[nn.Module, Any]:
    run = exact(job["seed"])
    spec = plan["models"][job["model"]]
    build, chosen = Builder(spec["name"], spec["options"]), recipe(job["recipe"])
    split: Any = data.train
    planted = None
    if "attack" in job:
        attack = attack_of(job, data.train.num_classes)
        if attack.trains:
            victim = attack.train(build, split, run, chosen)
            return victim.model, victim.planted
        poisoned = attack.poison(split, run)
        split, planted = poisoned.split, poisoned.planted
    elif "control" in job:
        split = disturbed(split, job["control"], seed=job["seed"])
    mode = job.get("train", "plain")
    if mode == "sam":
        chosen = chosen.replace(sam_rho=0.1)
    elif mode == "augment":
        side = min(data.train.card.size)
        chosen = chosen.replace(augment=th.Augment(crop_pad=side // 8, rotation=15.0, cutout=side // 4))
    step = {"adversarial": adversarial_step, "even_head": even_head_step}.get(mode, cross_entropy_step)
    model = make(build, split, run)
    return loop(model, split, run, chosen, step=step), planted


def each_model(runs: Path, plan: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Path]]:
    """Networks of the plan that are there."""
    for job in jobs(plan):
        if (runs / job["key"] / "run.json").exists():
            yield job, runs / job["key"]


def of_store(store: Path, spec: Path) -> tuple[list[tuple[dict[str, Any], Path]], Callable[[str], th.Data]]:
    """Networks of a sweep that are done, with the rows of their sets; a group's name is the part that it belongs to."""
    load, checked = Loader(), read_spec(spec)
    models = {}
    with Store(store, make=False) as opened:
        for group in checked.groups:
            for node in make_plan(group, load=load).nodes.values():
                if opened.status(node.key) != "done":
                    continue
                cell, attack, change = node.cell, node.job.attack, node.job.data.disturbed
                job: dict[str, Any] = {
                    "key": node.key,
                    "part": group.name,
                    "set": cell.data,
                    "model": cell.model,
                    "recipe": cell.recipe,
                }
                job |= {"seed": cell.seed}
                if attack is not None:
                    job |= {"attack": attack.name, "label": cell.attack, "rate": attack.poison_rate, "config": attack.config()}
                elif change:
                    job["control"] = change["kind"]
                models[node.key] = (job, opened.home(node.key))
    sources = {entry.label: entry.value for entry in checked.data}
    return list(models.values()), lambda name: load(sources[name])


def train_all(plan: dict[str, Any], paths: dict[str, str], runs: Path, seconds: float) -> None:
    loaded: dict[str, th.Data] = {}
    began = time.time()
    todo = [job for job in jobs(plan) if not (runs / job["key"] / "run.json").exists()]
    for number, job in enumerate(todo, 1):
        if time.time() - began > seconds:
            print(f"out of time; {len(todo) - number + 1} networks are left", flush=True)
            return
        if job["set"] not in loaded:
            loaded[job["set"]] = data_of(job["set"], plan, paths)
        data, start = loaded[job["set"]], time.time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model, planted = trained(job, plan, data)
                figures = th.evaluate(model, data.test, planted, run=exact())
        except th.TheriacError as error:
            print(f"{number} of {len(todo)}  {job['key']}  failed: {error}", flush=True)
            continue
        th.save(model, runs / job["key"], job=job, figures=figures, machine=machine(), seconds=round(time.time() - start, 1))
        print(f"{number} of {len(todo)}  {job['key']}  {figures}  {time.time() - start:.0f} s", flush=True)


def measure_all(
    models: Iterable[tuple[dict[str, Any], Path]],
    load: Callable[[str], th.Data],
    table: Table,
    command: str,
    again: bool = False,
) -> None:
    """Take the measurements of a scan of each network that is there, on rows of its test set; ``again`` renews known ones.

    Networks that are neither benign nor backdoored are recorded without measurements.
    """
    loaded = dict[str, th.Data]()
    for job, folder in models:
        if job["key"] in table and not again:
            continue
        if job["set"] not in loaded:
            loaded[job["set"]] = load(job["set"])
        model, made, rows = th.load_model(folder), read_json(folder / "run.json"), loaded[job["set"]].test
        figures = made["figures"] if "figures" in made else made["evaluation"]
        natural = without_trigger(job, model, rows) if "attack" in job else None
        record: dict[str, Any] = {
            **job,
            "acc": round(figures["acc"]["value"], 4),
            "asr": None if figures.get("asr") is None else round(figures["asr"]["value"], 4),
            "without_trigger": None if natural is None else round(natural, 4),
            "parameters": sum(p.numel() for p in model.parameters()),
            "machine": machine(),
            "command": command,
        }
        if truth(record) is not None:
            record |= measured(model, rows)
        table.put(job["key"], record)
        print(job["key"], record.get("seconds"), flush=True)


def measured(model: nn.Module, rows: th.Split) -> dict[str, Any]:
    """What a scan measures of a model, and how long: seconds of the clock for weights, else of the processor."""
    weights, began = look_at_weights(model, rows.card.shape), time.process_time()
    run = exact()
    behavior, middle = look_at_behavior(model, rows, run), time.process_time()
    assert behavior.twin is not None
    inner, ended = look_at_inversion(model, behavior.twin, rows, run), time.process_time()
    features = {**weights.features, **behavior.features, **inner.features}
    seconds = {"weights": weights.seconds, "behavior": middle - began, "inversion": ended - middle}
    return {
        "features": {k: round(v, 5) for k, v in features.items() if k != "sorted_weights"},
        "sorted": sorted_of(model),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }


def sorted_of(model: nn.Module) -> list[float]:
    """Quantiles of sorted weights; the score that a scan makes of them is fitted on these."""
    _, head = classifier(model)
    return [round(v, 3) for v in sorted_weights(model, head).tolist()]


def truth(record: dict[str, Any]) -> bool | None:
    """Whether a network is backdoored; None where the trigger adds too little to what happens without it."""
    if "attack" not in record:
        return False
    return True if record["asr"] - (record["without_trigger"] or 0.0) >= WORKS else None


def odds(model: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Probabilities, with measurements cut off as the scan does."""
    scaler, logistic = model
    away = np.clip(scaler.transform(x), -calibration.FARTHEST, calibration.FARTHEST)
    chances: np.ndarray[Any, Any] = logistic.predict_proba(away)[:, 1]
    return chances


def fitted(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], c: float) -> Any:
    scaler = StandardScaler().fit(x)
    return scaler, LogisticRegression(C=c, class_weight="balanced", max_iter=5000).fit(scaler.transform(x), y)


def left_out(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], c: float) -> np.ndarray[Any, Any]:
    """The probability of each network by a model that was fitted without it."""
    chances = np.zeros(len(y))
    for at in range(len(y)):
        rest = np.arange(len(y)) != at
        chances[at] = odds(fitted(x[rest], y[rest], c), x[at : at + 1])[0]
    return chances


def thresholds(chances: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Where "suspicious" and "backdoored" begin: above nine tenths of the benign ones, and above all of them."""
    benign = np.sort(chances[y == 0])
    low = float(benign[int(0.9 * (len(benign) - 1))])
    return round(min(0.5, low + 0.02), 3), round(min(0.98, max(0.6, float(benign[-1]) + 0.02)), 3)


def figures_of(chances: np.ndarray[Any, Any], y: np.ndarray[Any, Any], words: np.ndarray[Any, Any]) -> dict[str, Any]:
    figures = detection(torch.tensor(chances), torch.tensor(y == 1))
    return {
        "poisoned": figures.poisoned,
        "clean": figures.clean,
        "auroc": round(figures.auroc, 4),
        "interval": [round(v, 4) for v in figures.interval],
        "tpr": {share: [rate.hits, rate.total] for share, rate in zip(("0.01", "0.05"), figures.tpr, strict=False)},
        "brier": round(brier(torch.tensor(chances), torch.tensor(y == 1)), 4),
        "verdicts": {
            kind: {word: int((words[y == truth] == word).sum()) for word in ("clean", "suspicious", "backdoored", "abstains")}
            for kind, truth in (("poisoned", 1), ("benign", 0))
        },
    }


def words_of(which: str, model: Any, x: np.ndarray[Any, Any], chances: np.ndarray[Any, Any], marks: tuple[float, float]) -> Any:
    """The verdicts, as ``theriac.scanning.calibration.word`` gives them."""
    (scaler, logistic), (low, high) = model, marks
    away = scaler.transform(x)
    beyond = np.abs(away) > calibration.FARTHEST
    least = logistic.predict_proba(np.where(beyond, 0.0, away))[:, 1]
    words = np.where(chances >= high, "backdoored", np.where(chances >= low, "suspicious", "clean"))
    words = np.where(beyond.any(1), np.where(least >= low, "suspicious", "abstains"), words)
    return np.where(which == "weights", "abstains", words)


def known(record: dict[str, Any]) -> bool:
    """Whether a network's attack is one that the fitted part has, in whatever pattern."""
    return ATTACKS.get(record["attack"], (record["attack"],))[0] in FITTED


def fresh_parts(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Which fresh networks each figure is of: all, those of new seeds, narrow ones, those of width 16, of larger pictures."""
    new = np.array([r["round"] == LATEST for r in records], bool)
    wide = np.array([r["model"] == "preact16" for r in records], bool)
    large = np.array([r["set"] in LARGE for r in records], bool)
    parts = {"fresh": np.ones(len(records), bool), "fresh_new": new}
    parts |= {"fresh_narrow": ~wide & ~large, "fresh_wide": wide, "fresh_large": large}
    return {name: rows for name, rows in parts.items() if any(rows)}


def range_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What networks a probability is calibrated for: boxes of sides, parameters and accuracy that it spans."""
    plan = yaml.safe_load(PLAN.read_text())
    some = th.load("digits").train.sample(20, stratified=True)
    models = {r["model"]: plan["models"][r["model"]] for r in records}
    nets = {name: make(Builder(spec["name"], spec["options"]), some, th.Run(quiet=True)) for name, spec in models.items()}
    layers = {name: sum(isinstance(m, nn.Conv2d) for m in net.modules()) for name, net in nets.items()}
    boxes = (  # sides, and networks of the fitted part that show which sizes of networks go with them
        ([8, 16], lambda r: r["model"] != "preact16" and r["set"] not in LARGE),
        ([8, 8], lambda r: r["set"] == "digits"),
        ([28, 32], lambda r: r["set"] in LARGE),
    )
    regions = []
    for sides, inside in boxes:
        sizes = [r["parameters"] for r in records if inside(r)]
        right = math.floor(20 * min(r["acc"] for r in records if inside(r))) / 20
        regions.append({"side": sides, "parameters": [min(sizes), max(sizes)], "accuracy": right})
    return {"regions": regions, "classes": [5, 10], "convolutions": min(layers.values()), "rows": ROWS}


def fit_all(out: Path, table: Table) -> None:
    """Fit on the part ``fit``, choose strength and thresholds there by leaving one network out, report on the part ``held``."""
    records = [r for r in table if truth(r) is not None]
    weak = [r["key"] for r in table if truth(r) is None]
    part = {name: [r for r in records if r["part"] == name] for name in ("fit", "held", "fresh")}
    shipped: dict[str, Any] = {"version": 1, "sorted": fit_sorted(part)}
    shown: dict[str, Any] = {}
    for which, names in (("weights", WEIGHTS), ("behavior", BEHAVIOR)):
        x, y = ({k: np.array([f(r) for r in v]) for k, v in part.items()} for f in (features_of(names), truth))
        y = {k: v.astype(int) for k, v in y.items()}
        losses = {c: brier(torch.tensor(left_out(x["fit"], y["fit"], c)), torch.tensor(y["fit"] == 1)) for c in STRENGTHS}
        c = min(losses, key=lambda value: losses[value])
        inner = left_out(x["fit"], y["fit"], c)
        low, high = thresholds(inner, y["fit"])
        scaler, logistic = model = fitted(x["fit"], y["fit"], c)
        chances = {name: odds(model, x[name]) for name in ("held", "fresh")}
        words = {name: words_of(which, model, x[name], chances[name], (low, high)) for name in chances}
        held = part["held"]
        subsets = {
            "held_out": [True for _ in held],
            "held_out_known": ["attack" not in r or known(r) for r in held],
            "held_out_other": ["attack" not in r or not known(r) for r in held],
        }
        shipped[which] = {
            "names": list(names),
            "centers": [round(float(v), 6) for v in scaler.mean_],
            "scales": [round(float(v), 6) for v in scaler.scale_],
            "slopes": [round(float(v), 6) for v in logistic.coef_[0]],
            "intercept": round(float(logistic.intercept_[0]), 6),
            "thresholds": [low, high],
            "strength": c,
            "left_one_out": figures_of(inner, y["fit"], words_of(which, model, x["fit"], inner, (low, high))),
            **{k: figures_of(chances["held"][rows], y["held"][rows], words["held"][rows]) for k, rows in subsets.items()},
            **{
                name: figures_of(chances["fresh"][rows], y["fresh"][rows], words["fresh"][rows])
                for name, rows in fresh_parts(part["fresh"]).items()
            },
        }
        shown[which] = tuple(np.concatenate([values["held"], values["fresh"]]) for values in (chances, y))
    shipped["range"] = range_of(part["fit"])
    shipped["provenance"] = {
        "made_by": "python benchmarks/population.py fit",
        "plan": "benchmarks/plans/population.yaml",
        "table": "benchmarks/results/population.jsonl",
        "fitted_on": {"benign": int((y["fit"] == 0).sum()), "poisoned": int((y["fit"] == 1).sum())},
        "left_out": weak,
    }
    write_json(out, shipped)
    plot(shown, RESULTS / "population.svg")


def fit_sorted(part: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Fit the linear classifier on sorted weights, and give every network its score as one more measurement.

    Networks of the fitted part get the score of a classifier that was fitted without them, so that what is fitted on top of it
    does not take its success on known networks for success.
    """
    x = {name: np.array([r["sorted"] for r in records]) for name, records in part.items()}
    y = {name: np.array([truth(r) for r in records]).astype(int) for name, records in part.items()}
    losses = {c: brier(torch.tensor(left_out(x["fit"], y["fit"], c)), torch.tensor(y["fit"] == 1)) for c in SORTED_STRENGTHS}
    c = min(losses, key=lambda value: losses[value])
    scaler, logistic = model = fitted(x["fit"], y["fit"], c)
    chances = {name: left_out(x["fit"], y["fit"], c) if name == "fit" else odds(model, x[name]) for name in part}
    for name, records in part.items():
        for record, chance in zip(records, chances[name], strict=True):
            record["features"] = {**record["features"], "sorted_weights": float(np.log(chance / (1 - chance)))}
    numbers = {"centers": scaler.mean_, "scales": scaler.scale_, "slopes": logistic.coef_[0]}
    figures = {
        report: figures_of(chances[name], y[name], np.full(len(y[name]), "abstains"))
        for report, name in (("left_one_out", "fit"), ("held_out", "held"), ("fresh", "fresh"))
    }
    return {
        **{name: [round(float(v), 5) for v in values] for name, values in numbers.items()},
        "intercept": round(float(logistic.intercept_[0]), 6),
        "strength": c,
        **figures,
    }


def features_of(names: tuple[str, ...]) -> Any:
    return lambda record: [record["features"][name] for name in names]


def plot(shown: dict[str, Any], path: Path) -> None:
    """Share of poisoned networks against their mean probability, in five bins."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "theriac"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.2, 4.2))
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for which, mark in (("weights", "o"), ("behavior", "s")):
        chances, y = shown[which]
        bins = np.minimum((5 * chances).astype(int), 4)
        points = [
            (chances[bins == k].mean(), y[bins == k].mean(), int((bins == k).sum())) for k in range(5) if (bins == k).any()
        ]
        axes.plot(
            [p[0] for p in points],
            [p[1] for p in points],
            mark + "-",
            label=which,
        )
        for a, b, n in points:
            axes.annotate(str(n), (a, b), textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set(
        xlabel="probability (mean of the bin)",
        ylabel="share that is poisoned",
        title="Reliability, held-out and fresh networks",
    )
    axes.legend(frameon=False)
    write_atomically(path, lambda t: figure.savefig(t, format="svg", bbox_inches="tight", metadata={"Date": None}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "measure", "fit", "list"))
    parser.add_argument("--plan", type=Path, default=PLAN)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--runs", type=Path, default=Path("runs/population"))
    parser.add_argument("--again", action="store_true", help="measure: all networks once more")
    parser.add_argument("--part", help="measure: networks of this part alone, such as fit")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no network after this time")
    parser.add_argument("--store", type=Path, help="measure: networks of the sweep in this store, and none of --runs")
    parser.add_argument("--spec", type=Path, default=SPEC, help="of that store")
    parser.add_argument("--table", default="population", help="measure, fit: name of the table under benchmarks/results")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="where the fitted model goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    plan = yaml.safe_load(args.plan.read_text())
    paths = dict(item.split("=", 1) for item in args.data)
    if args.what == "list":
        for job in jobs(plan):
            print(job["key"])
    elif args.what == "fit":
        fit_all(args.out, Table.of(args.table))
    elif args.what == "measure" and args.store:
        command = f"python benchmarks/population.py measure --store {args.store} --table {args.table}"
        measure_all(*of_store(args.store, args.spec), Table.of(args.table), command, args.again)
    elif args.what == "measure":
        command = "python benchmarks/population.py measure"
        command += f" --part {args.part} --table {args.table}" if args.part else ""
        models = (pair for pair in each_model(args.runs, plan) if args.part in (None, pair[0]["part"]))
        measure_all(models, lambda name: data_of(name, plan, paths), Table.of(args.table), command, args.again)
    else:
        train_all(plan, paths, args.runs, args.seconds)


if __name__ == "__main__":
    main()
