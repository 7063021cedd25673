"""What the speed suite measures: pairs of two ways to the same thing, and works that grow."""

from __future__ import annotations

import copy
import io
import math
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from per_image import STYLES, as_files, as_items, bare, encode, loops
from PIL import Image
from timing import ROOT, Work, copy_rate, matmul_rate, operations, started
from torch import nn

import theriac as th
from theriac.attacks import SIG, BadNets, Blended, BppAttack, FTrojan, WaNet
from theriac.cli.main import SPINS
from theriac.core.planted import Planted
from theriac.detectors.neural_cleanse import Schedule, invert
from theriac.models import to_input
from theriac.training import Recipe, loop
from theriac.triggers.per_row import uniform


@dataclass(frozen=True)
class Pair:
    """Two ways to the same thing.

    Time is taken around the calls, or, of processes that they start, is what they return, with the most memory in MB.
    """

    name: str
    what: str  # what ours does, one sentence
    against: str  # what the reference does, one sentence
    ours: Work
    reference: Work
    rows: int = 1  # that ours handles in a call
    reference_rows: int = 1
    floor: tuple[str, float] | None = None  # what bounds ours, and its seconds for as many rows
    timed: bool = True  # False: the calls return seconds and MB of a process
    wall: bool = False  # whether seconds that calls return are of the clock on the wall, not of the processor
    once: bool = False  # too long to be run for warming up


@dataclass(frozen=True)
class Setting:
    """Sizes and the device; ``quick`` makes everything tiny, to try the suite itself."""

    device: torch.device
    rows: int
    side: int
    width: int
    quick: bool

    def split(self, rows: int | None = None, side: int | None = None, classes: int = 10) -> th.Split:
        """Random color images."""
        count, size = rows or self.rows, side or self.side
        draw = torch.Generator().manual_seed(0)
        x = torch.randint(0, 256, (count, 3, size, size), generator=draw, dtype=torch.uint8)
        card = th.Card(
            kind="image",
            classes=tuple(map(str, range(classes))),
            size=(size, size),
            channels=3,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            augment=th.Augment(crop_pad=4, flip=True),
        )
        return th.Split(x, torch.arange(count) % classes, card=card).to(self.device)

    def run(self) -> th.Run:
        """A quiet run in float32."""
        return th.Run(device=self.device, precision="fp32" if self.device.type == "cpu" else "auto", quiet=True)

    def network(self, split: th.Split, width: int | None = None) -> nn.Module:
        """A PreAct-ResNet-18 with its own start."""
        return th.build("preact_resnet18", split, self.run(), width=width or self.width).to(self.device)


def poison_pairs(s: Setting) -> Iterator[Pair]:
    """Each static trigger on a batch, beside loops over single images."""
    split, count = s.split(), max(2, s.rows // 8)
    attacks = {
        "badnets": BadNets(),
        "blended": Blended(),
        "sig": SIG(),
        "ftrojan": FTrojan(),
        "wanet": WaNet(),
        "wanet_cross": WaNet(),
        "bpp": BppAttack(),
        "bpp_dither": BppAttack(dithering=True),
    }
    planted: dict[str, Planted] = {name: attack.plant(split) for name, attack in attacks.items()}
    images = [image.numpy() for image in split.x[:count].cpu().permute(0, 2, 3, 1).contiguous()]
    against = {"bare": "one array after the other", "items": "one item of a data set after the other", "files": "PNG files"}
    floor = ("copying the rows", 2 * split.x.numel() / copy_rate(s.device))
    for name, single in loops(s.side, planted).items():
        few = images[: max(1, count // 50)] if name == "bpp_dither" else images
        sources: dict[str, list[Any]] = {
            "bare": few,
            "items": [Image.fromarray(i) for i in few],
            "files": [encode(i) for i in few],
        }
        style_of: dict[str, Callable[..., Any]] = {"bare": bare, "items": as_items, "files": as_files}
        for style in STYLES:
            yield Pair(
                f"poison-{name}-{style}",
                f"stamps {name} on batches of 1,024 images",
                against[style],
                partial(stamp_all, planted[name], split, "cross" if name.endswith("_cross") else "poison"),
                partial(style_of[style], single, sources[style]),
                len(split),
                len(few),
                floor,
            )


def stamp_all(planted: Planted, split: th.Split, variant: str) -> torch.Tensor:
    """All rows with the trigger, a thousand at a time, as ``poison`` does it."""
    out = torch.empty_like(split.x)
    for p in split.batches(1024):
        out[p[0] : p[-1] + 1] = planted.stamp(split.rows(p), split.y[p], split.index[p], "train", variant)
    return out


def evaluate_pairs(s: Setting) -> Iterator[Pair]:
    """Clean and stamped predictions, beside a data set of single items read twice."""
    split = s.split(max(32, s.rows // 8))
    model, attack, run = s.network(split).eval(), BadNets(), s.run()
    planted = attack.plant(split)
    objects = items_of(split)
    forward = operations(model, to_input(split.rows(torch.arange(16, device=s.device)))) / 16
    passes = len(split) + int(planted.population(split.y).sum())

    floor = ("operations of the network over the rate of a matrix product", passes * forward / matmul_rate(s.device))
    about = "counts ACC, ASR and RA in one pass"
    yield Pair(
        "evaluate-items", about, "single items, clean and then stamped, in batches of 128",
        lambda: th.evaluate(model, split, attack, run=run), lambda: measure_items(model, objects, split.y), len(split),
        len(split), floor,
    )  # fmt: skip
    yield Pair(
        "evaluate-batch", about, "the same, in batches of 512 rows",
        lambda: th.evaluate(model, split, attack, run=run),
        lambda: th.evaluate(model, split, attack, run=run, batch_size=512), len(split), len(split), floor,
    )  # fmt: skip
    # what a sweep would save if it stamped the test rows of a victim once for all of its repairs
    for name, other in {"badnets": attack, "wanet": WaNet(), "bpp_dither": BppAttack(dithering=True)}.items():
        yield Pair(
            f"evaluate-stamping-{name}", f"stamps the test rows with {name}", "counts ACC, ASR and RA, stamping and all",
            partial(stamp_all, other.plant(split), split, "poison"), partial(th.evaluate, model, split, other, run=run),
            len(split), len(split),
        )  # fmt: skip


def train_pairs(s: Setting) -> Iterator[Pair]:
    """An epoch of the loop, beside the bare steps on batches that are ready."""
    split = s.split(max(64, s.rows // 8))
    recipe = Recipe(epochs=1, batch_size=min(128, len(split)), lr=0.01, weight_decay=5e-4, schedule="constant")
    ours, theirs = s.network(split), s.network(split)
    forward = operations(theirs, to_input(split.rows(torch.arange(16, device=s.device)))) / 16
    batches = [(to_input(split.rows(p)), split.y[p]) for p in split.batches(recipe.batch_size)]
    stepper = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    theirs.to(memory_format=torch.channels_last) if s.width >= 8 else None  # type: ignore[call-overload]

    def steps() -> None:
        theirs.train()
        for x, y in batches:
            stepper.zero_grad()
            nn.functional.cross_entropy(theirs(x), y).backward()
            stepper.step()

    floor = 3 * len(split) * forward / matmul_rate(s.device)
    yield Pair(
        "train-epoch", "one epoch with augmentation, normalization, figures and progress", "forward, backward and step alone",
        lambda: loop(ours, split, s.run(), recipe), steps, len(split), len(split),
        ("three forward passes' operations over the rate of a matrix product", floor),
    )  # fmt: skip


def repair_pairs(s: Setting) -> Iterator[Pair]:
    """Repairs in process, and fine-tuning as a whole process."""
    split = s.split(max(64, s.rows // 16))
    model, method, run = s.network(split).eval(), th.repairs.FT(epochs=1), s.run()

    def by_hand() -> None:
        net = copy.deepcopy(model)
        loop(net, split, run, method.recipe(), label="by hand")

    yield Pair(
        "repair-ft", "one epoch of FT with its checks, its look before and after, its copy", "a copy and the training alone",
        lambda: quietly(method.repair, model, split, run), by_hand, len(split), len(split),
    )  # fmt: skip


def evaluated_pairs(s: Setting) -> Iterator[Pair]:
    """A repair of 100 epochs, on one clean row for every four test rows, as 5 % of CIFAR-10 has them."""
    clean, test = s.split(max(16, s.rows // 32)), s.split(max(64, s.rows // 8))
    model, run, attack = s.network(clean, max(8, s.width // 2)).eval(), s.run(), BadNets()
    method = th.repairs.FT(epochs=2 if s.quick else 100, batch_size=min(256, len(clean)))
    items = items_of(clean), items_of(test)

    def ours() -> None:
        before = th.evaluate(model, test, attack, run=run)
        th.compare(before, th.evaluate(quietly(method.repair, model, clean, run), test, attack, run=run))

    def theirs() -> None:
        net = copy.deepcopy(model)
        stepper = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        for _ in range(method.epochs):
            net.train()
            for some in torch.randperm(len(clean)).split(method.batch_size):
                stepper.zero_grad()
                x = torch.stack([one_of(items[0][i], crop=True) for i in some.tolist()]).to(s.device)
                nn.functional.cross_entropy(net(x), clean.y[some.to(s.device)]).backward()
                stepper.step()
            measure_items(net, items[1], test.y)

    yield Pair(
        "evaluated-repair", f"FT for {method.epochs} epochs on {len(clean)} rows, {len(test)} test rows before and after",
        "single items, the test rows clean and stamped after every epoch", ours, theirs, once=True,
    )  # fmt: skip


def process_pairs(s: Setting) -> Iterator[Pair]:
    """Fine-tuning as a whole process."""
    split = s.split(max(64, s.rows // 16))
    model = s.network(split).eval()
    folder = Path(tempfile.mkdtemp())
    torch.save(model.state_dict(), folder / "weights.pt")
    torch.save((split.x.cpu(), split.y.cpu()), folder / "rows.pt")
    given = [str(folder), str(s.width)]
    about = f"import, load, FT for one epoch on {len(split)} rows, evaluate before and after; a whole process"
    yield Pair(
        "process-ft", about, "a script that does the same by hand, one item after the other",
        partial(started, ["-c", FT_OURS, *given]), partial(started, ["-c", FT_PLAIN, *given]), len(split), len(split),
        timed=False,
    )  # fmt: skip
    cores = os.cpu_count() or 1
    usual = partial(started, ["-c", FT_OURS, *given], ROOT / "src", OMP_NUM_THREADS=str(cores))
    ours = partial(usual, GOMP_SPINCOUNT=SPINS)
    for name, others, words in (("busy", cores, f"{cores} other processes that never rest"), ("alone", 0, "nothing")):
        yield Pair(
            f"process-{name}", f"{about}; {cores} threads beside {words}, as the command line starts where others are at work",
            "the same process with the usual turns of waiting threads",
            partial(beside, others, ours), partial(beside, others, usual), len(split), len(split), timed=False, wall=True,
        )  # fmt: skip


def beside(others: int, work: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Seconds on the wall and MB of a process, with ``others`` beside it that never rest."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
    try:
        began = time.perf_counter()
        _, most = work()
        return time.perf_counter() - began, most
    finally:
        for process in busy:
            process.kill()
            process.wait()


def search_pairs(s: Setting) -> Iterator[Pair]:
    """Neural Cleanse's search for the target class, as AGE makes it, in a network that obeys a bright corner."""
    split, rounds = s.split(100), 1 if s.quick else 6
    model, run = Obeys(s.network(split)).eval(), s.run()
    short = Schedule.few_samples().replace(rounds=rounds)
    screen = Schedule.screen().replace(rounds=2, confirm=2) if s.quick else Schedule.screen()
    yield Pair(
        "search-screen", "all 10 classes on 20 of 100 rows, the small ones again on all, beside four others (screen)",
        f"300 rounds on 100 rows (few_samples), from {rounds} rounds",
        lambda: invert(model, split, run, screen), lambda: invert(model, split, run, short), 300, rounds, once=True,
    )  # fmt: skip


class Obeys(nn.Module):
    """A network of which a bright corner raises class 2, with logits so large that rows differ."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, K)."""
        logits: torch.Tensor = 10 * self.net(x)
        corner = x[:, :, -2:, -2:].mean((1, 2, 3))
        return logits + 40 * corner.pow(4)[:, None] * nn.functional.one_hot(torch.tensor(2), logits.shape[1]).to(x)


def start_pairs(_: Setting) -> Iterator[Pair]:
    """Starts of processes."""
    yield Pair(
        "start-list", "theriac list, a whole process", "the same table from the registry",
        partial(started, ["-c", LIST]), partial(started, ["-c", f"import torch; {LIST}"]), timed=False,
    )  # fmt: skip
    yield Pair(
        "start-optimizer", "import torch and theriac's SGD, make one; a whole process", "torch's SGD",
        partial(started, ["-c", f"{ONE_WEIGHT}; from theriac.training.optimizers import SGD; SGD([w], lr=0.1)"]),
        partial(started, ["-c", f"{ONE_WEIGHT}; import theriac.training; torch.optim.SGD([w], lr=0.1)"]), timed=False,
    )  # fmt: skip
    yield Pair(
        "start-import", "import torch, theriac, its attacks and its repairs; a whole process", "import torch",
        partial(started, ["-c", f"import torch; {METHODS}"]), partial(started, ["-c", "import torch"]), timed=False,
    )  # fmt: skip


def core_pairs(s: Setting) -> Iterator[Pair]:
    """Pieces of the core."""
    split = s.split(classes=200)
    yield Pair(
        "core-draw", "a draw with every class in turn, 200 classes", "one mask a class",
        lambda: split.sample(0.1, stratified=True), partial(draw_by_masks, split), len(split), len(split),
    )  # fmt: skip
    index = torch.arange(max(16, s.rows // 8))
    shape = (s.side, s.side, 2)
    yield Pair(
        "core-hash", "random numbers of rows, in chunks of 32-bit numbers", "the same formula in 64 bits on all rows at once",
        lambda: uniform(index, shape, 0), partial(hash_at_once, index, shape), len(index), len(index),
    )  # fmt: skip


GROUPS: dict[str, Callable[[Setting], Iterator[Pair]]] = {
    "poison": poison_pairs,
    "evaluate": evaluate_pairs,
    "train": train_pairs,
    "repair": repair_pairs,
    "evaluated": evaluated_pairs,
    "process": process_pairs,
    "search": search_pairs,
    "start": start_pairs,
    "core": core_pairs,
}

LIST = "import sys; sys.argv = ['theriac', 'list']; from theriac.cli.main import run; run()"
METHODS = "import theriac; theriac.attacks, theriac.repairs"
ONE_WEIGHT = "import torch; w = torch.nn.Parameter(torch.zeros(3))"
FT_COMMON = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
folder, width = sys.argv[1], int(sys.argv[2])
import theriac as th
x, y = torch.load(folder + "/rows.pt")
card = th.Card(kind="image", classes=tuple(map(str, range(10))), size=tuple(x.shape[2:]), channels=3, mean=(.5, .5, .5),
               std=(.25, .25, .25), augment=th.Augment(crop_pad=4, flip=True))
split = th.Split(x, y, card=card)
run = th.Run(device="cpu", precision="fp32", quiet=True)
model = th.build("preact_resnet18", split, run, width=width)
model.load_state_dict(torch.load(folder + "/weights.pt"))
"""
FT_OURS = f"""{FT_COMMON}
attack = th.attacks.BadNets()
before = th.evaluate(model, split, attack, run=run)
fixed = th.repairs.FT(epochs=1).repair(model, split, run)
after = th.evaluate(fixed, split, attack, run=run)
"""
FT_PLAIN = f"""{FT_COMMON}
import copy, random
import numpy as np
from PIL import Image
images = [Image.fromarray(i.permute(1, 2, 0).numpy()) for i in x]
def item(i, stamped, augment):
    pixels = np.array(images[i])
    if stamped:
        pixels[-3:, -3:] = 255
    if augment:
        padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)))
        r, c = random.randrange(9), random.randrange(9)
        pixels = padded[r : r + pixels.shape[0], c : c + pixels.shape[1]]
        pixels = pixels[:, ::-1].copy() if random.random() < 0.5 else pixels
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)
def measure(net):
    net.eval()
    with torch.no_grad():
        for stamped in (False, True):
            for at in range(0, len(y), 256):
                rows = range(at, min(at + 256, len(y)))
                net(torch.stack([item(i, stamped, False) for i in rows])).argmax(1)
measure(model)
net = copy.deepcopy(model).train()
stepper = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
order = torch.randperm(len(y)).tolist()
for at in range(0, len(y), 256):
    rows = order[at : at + 256]
    stepper.zero_grad()
    torch.nn.functional.cross_entropy(net(torch.stack([item(i, False, True) for i in rows])), y[rows]).backward()
    stepper.step()
measure(net)
"""


# a process of now beside one of an earlier commit


def commit_pairs(s: Setting, commit: str) -> Iterator[Pair]:
    """Whole commands of this tree beside those of an earlier commit of this repository."""
    home = Path(tempfile.mkdtemp())
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", commit, "src"], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(home, filter="data")
    sources, cache = {"ours": ROOT / "src", "reference": home / "src"}, {"THERIAC_CACHE": str(home / "cache")}
    clean, test = max(64, s.rows // 16), max(32, s.rows // 32)
    for part, count in (("train", clean), ("test", test)):
        for number, image in enumerate(items_of(s.split(count))):
            folder = home / "pictures" / part / str(number % 10)
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number}.png")
    common = ["--device", "cpu", "--precision", "fp32", "--quiet"]
    for side, source in sources.items():  # each repairs a victim of its own
        words = ["--data", str(home / "pictures"), "--recipe", "short_1", "--width", str(s.width), "--attack", "badnets"]
        started(["-m", "theriac", "train", *words, *common, "--out", str(home / side)], source, **cache)

    def repaired(side: str) -> tuple[float, float]:
        out = tempfile.mkdtemp(dir=home)
        words = ["--method", "ft", "--option", "epochs=1", "--clean", str(clean), "--out", f"{out}/fixed"]
        return started(["-m", "theriac", "repair", str(home / side), *words, *common], sources[side], **cache)

    yield Pair(
        "commit-ft", f"theriac repair: FT, one epoch, {clean} rows, {test} test rows, width {s.width}; a whole process",
        f"the same at {commit}", partial(repaired, "ours"), partial(repaired, "reference"), timed=False, once=True,
    )  # fmt: skip
    wanet = f"import theriac as th, torch; x = torch.zeros(({s.rows}, 3, {s.side}, {s.side}), dtype=torch.uint8)"
    wanet += "; th.attacks.WaNet(poison_rate=0.1).poison(th.Split(x, torch.arange(len(x)) % 10))"
    codes = {"import": (METHODS, "import of attacks and repairs"), "list": (LIST, "theriac list")}
    codes["wanet"] = (wanet, f"WaNet's poisoning of {s.rows} rows of side {s.side}, 10 % and as many covers twice")
    for name, (code, what) in codes.items():
        now, then = (partial(started, ["-c", code], source, **cache) for source in sources.values())
        yield Pair(f"commit-{name}", f"{what}; a whole process", f"the same at {commit}", now, then, timed=False)


def items_of(split: th.Split) -> list[Image.Image]:
    """Rows as a data set of single images holds them."""
    return [Image.fromarray(i.numpy()) for i in split.x.cpu().permute(0, 2, 3, 1).contiguous()]


def one_of(image: Image.Image, stamped: bool = False, crop: bool = False) -> torch.Tensor:
    """One item as a plain data set hands it out: stamped with a white square, or cropped and mirrored at random."""
    pixels = np.array(image)
    if stamped:
        pixels[-3:, -3:] = 255
    if crop:
        padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)))
        row, column = random.randrange(9), random.randrange(9)
        pixels = padded[row : row + pixels.shape[0], column : column + pixels.shape[1]]
        pixels = pixels[:, ::-1].copy() if random.random() < 0.5 else pixels
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)


def measure_items(model: nn.Module, images: list[Image.Image], y: torch.Tensor) -> tuple[int, int]:
    """Clean hits and attack successes, over two passes of single items."""
    hits = fooled = 0
    model.eval()
    with torch.no_grad():
        for stamped in (False, True):
            for at in range(0, len(images), 128):
                x = torch.stack([one_of(i, stamped) for i in images[at : at + 128]]).to(y.device)
                seen = model(x).argmax(1)
                hits += 0 if stamped else int((seen == y[at : at + 128]).sum())
                fooled += int((seen == 0).sum()) if stamped else 0
    return hits, fooled


def quietly(work: Callable[..., Any], *args: Any) -> Any:
    """Without warnings: random labels make every method complain."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work(*args)


def draw_by_masks(split: th.Split) -> th.Split:
    """The plain way of a stratified draw."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    labels = split.y.cpu()[order]
    by_class = [order[labels == k] for k in range(split.num_classes)]
    rank = torch.cat([torch.arange(len(rows)) for rows in by_class])
    return split.take(torch.cat(by_class)[torch.argsort(rank, stable=True)[: round(0.1 * len(split))]])


def hash_at_once(index: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The plain way of ``uniform`` with seed 0."""
    low = 0xFFFFFFFF

    def mix(x: torch.Tensor) -> torch.Tensor:
        x = x & low
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & low
        x = ((x ^ (x >> 15)) * (0x846CA68B - (1 << 32))) & low
        return x ^ (x >> 16)

    row = mix((index & low) ^ mix(index >> 32))
    bits = mix((row[:, None] + torch.arange(math.prod(shape))[None] * 0x9E3779B9) & low)
    return (bits >> 8).float().mul_(2.0**-24).view(len(index), *shape)


def curves(s: Setting) -> dict[str, tuple[str, dict[int, Work]]]:
    """Works by their size, under a name and with what it is a size of."""
    few, run, attack = max(16, s.rows // 32), s.run(), BadNets()

    def evaluated(split: th.Split, width: int | None = None) -> Work:
        model = s.network(split, width).eval()
        return lambda: th.evaluate(model, split, attack, run=run)

    def epoch(split: th.Split, width: int) -> Work:
        model, recipe = s.network(split, width), Recipe(epochs=1, batch_size=min(64, len(split)), lr=0.01)
        return lambda: loop(model, split, s.run(), recipe)

    sides = [s.side // 2, s.side, 2 * s.side] + ([] if s.quick else [3 * s.side])
    return {
        "evaluate-rows": ("rows", {few * k: evaluated(s.split(few * k)) for k in (1, 2, 4, 8)}),
        "evaluate-classes": ("classes", {k: evaluated(s.split(4 * few, classes=k)) for k in (10, 100, 1000)}),
        "evaluate-side": ("image side", {k: evaluated(s.split(few, side=k)) for k in sides}),
        "train-width": ("width", {k: epoch(s.split(2 * few), k) for k in (8, 16, 32)}),
        "train-rows": ("rows", {few * k: epoch(s.split(few * k), s.width) for k in (2, 4, 8)}),
        "poison-wanet-side": (
            "image side",
            {k: partial(stamp_all, WaNet().plant(some := s.split(4 * few, side=k)), some, "cross") for k in sides},
        ),
        "draw-classes": (
            "classes",
            {k: partial(s.split(classes=k).sample, 0.1, stratified=True) for k in (10, 100, 1000)},
        ),
    }
