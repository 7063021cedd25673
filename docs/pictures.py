"""The attacks' pictures: an image, the image as it is stamped for testing, and ten times their difference; a photo and a digit.

Called by ``docs/build.py --pictures``. ``pictures.json`` beside the PNG files records what was drawn; captions come from it.
"""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import theriac as th
from theriac.core.files import read_json, write_atomically, write_json
from theriac.core.method import create, methods

FOLDER = Path(__file__).resolve().parent / "pictures"
FACTS = FOLDER / "pictures.json"
PANEL, GAP, SIDE = 192, 8, 32  # pixels of a panel, between panels, and of the photograph before it is enlarged
TIMES = 10  # how strongly the difference is drawn
CROPS, DIGITS = 400, 600  # training rows of the stand-ins
# what makes a fitted attack cheap enough to draw; the published settings are the presets of its card
CHEAP: dict[str, dict[str, Any]] = {
    "rounding_triggered": {"epochs": 1},
    "grond": {"abi": False, "steps": 40, "surrogate_recipe": "short_6"},
    "input_aware": {"width": 8, "mask_epochs": 30},
    "label_consistent": {"surrogate_rows": 200, "surrogate_recipe": "short_1", "steps": 1},
    "lf": {"surrogate_recipe": "short_12", "steps": 100},
    "narcissus": {"steps": 60, "surrogate_recipe": "short_6"},
    "ssba": {"bits": 1, "width": 8, "bit_accuracy": 0.9},
    "trojannn": {"surrogate_recipe": "short_12", "steps": 100},
}
_INSIDE = "It stamps whatever the attack inside it stamps, so it has no picture of its own."
WITHOUT = {"group_trojan": _INSIDE, "sam_flat": _INSIDE}
RECIPE = "short_6"  # of victims that are trained together with their trigger
NOTES = {
    "label_consistent": "Training rows of the target class also carry an adversarial perturbation, which test rows do not.",
    "ssba": "The residual differs from image to image; it carries one bit here.",
    "input_aware": "The trigger differs from image to image. Published masks are held to 3 % of the pixels; here a faint rest "
    "of the mask covers nearly all of them, because it was trained so little.",
    "lira": "The perturbation differs from image to image; after so little training it does not use all the strength it may.",
    "composite": "The photograph's other half is a crop from the quadrant that stands for the second source class.",
    "multi_target": "Each row has one of several patches.",
}


@cache
def photos() -> th.Split:
    """Small crops of scikit-learn's two photographs; the class is the quadrant that a crop comes from (8 classes)."""
    from sklearn.datasets import load_sample_images

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = load_sample_images().images
    draw, rows, labels = np.random.default_rng(0), [], []
    for row in range(CROPS):
        label = row % 8
        image = images[label // 4]
        half = (image.shape[0] // 2, image.shape[1] // 2)
        top, left = (label // 2 % 2) * half[0], (label % 2) * half[1]
        size = int(draw.integers(64, half[0]))
        down, right = int(draw.integers(half[0] - size)), int(draw.integers(half[1] - size))
        rows.append(_shrink(image[top + down : top + down + size, left + right : left + right + size]))
        labels.append(label)
    return th.Split(torch.stack(rows), torch.tensor(labels))


@cache
def flower() -> torch.Tensor:
    """The photograph that is shown, uint8 (1, 3, 32, 32)."""
    from sklearn.datasets import load_sample_image

    image = load_sample_image("flower.jpg")
    return _shrink(image[:, 100 : 100 + image.shape[0]])[None]


def _shrink(image: np.ndarray) -> torch.Tensor:
    small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()


def draw(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Draw one attack's picture and note what is in it.

    Returns:
        What ``pictures.json`` then holds about it.
    """
    panels, facts = panels_of(name)
    canvas = np.zeros((2 * PANEL + GAP, 3 * PANEL + 2 * GAP, 4), dtype=np.uint8)  # gaps stay transparent
    for row, shown in enumerate(panels):
        for column, image in enumerate(shown):
            top, left = row * (PANEL + GAP), column * (PANEL + GAP)
            large = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
            large = large.repeat(PANEL // large.shape[0], 0).repeat(PANEL // large.shape[1], 1)
            canvas[top : top + PANEL, left : left + PANEL, :3] = large
            canvas[top : top + PANEL, left : left + PANEL, 3] = 255
    picture = Image.fromarray(canvas)
    write_atomically(folder / f"{name}.png", lambda path: picture.save(path, "PNG", optimize=True))
    known = read_json(folder / FACTS.name) if (folder / FACTS.name).exists() else {}
    write_json(folder / FACTS.name, dict(sorted({**known, name: facts}.items())))
    return facts


def panels_of(name: str) -> tuple[list[tuple[torch.Tensor, ...]], dict[str, Any]]:
    """Clean, stamped and difference, uint8 (C, H, W), for a photo and a digit; and what was done."""
    digits = th.load("digits")
    options = CHEAP.get(name, {})
    attack = create("attack", name, **options)
    fitted = "trained" if attack.trains else "fitted" if attack.must_fit else ""
    facts: dict[str, Any] = {"options": options, "fitted": fitted}
    label = attack.target + 1
    panels: list[tuple[torch.Tensor, ...]] = []
    at = int((digits.test.y == label).nonzero()[0])
    rows = {
        "photo": (photos(), flower(), torch.tensor([label])),
        "digit": (digits.train.sample(DIGITS, seed=0, stratified=True), digits.test.x[at : at + 1], digits.test.y[at : at + 1]),
    }
    for what, (split, image, y) in rows.items():
        stamped = plant(attack, split).stamp(image, y, torch.tensor([0]), "test")
        change = (stamped.int() - image.int()).abs()
        panels.append((image[0], stamped[0], (change * TIMES).clamp(max=255).to(torch.uint8)[0]))
        facts[what] = {"largest": int(change.max()), "changed": round(float((change.amax(1) > 0).float().mean()), 4)}
    return panels, facts


def plant(attack: Any, split: th.Split) -> Any:
    """The attack ready to stamp, fitted on the stand-in if it must be."""
    run, build = th.Run(seed=0, device="cpu", precision="fp32", quiet=True), th.Builder("preact_resnet18", {"width": 8})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tiny fits warn, and rightly
        return attack.train(build, split, run, RECIPE).planted if attack.trains else attack.plant(split, build, run)


def drawable() -> list[str]:
    """Attacks with a trigger of their own on images."""
    known = methods("attack").items()
    return [name for name, cls in known if getattr(cls, "stamps", "image") == "image" and name not in WITHOUT]


def caption(name: str) -> str:
    """What the picture shows, in words; why there is none, if there is none."""
    if name in WITHOUT or not (FOLDER / f"{name}.png").exists():
        return WITHOUT.get(name, "No picture yet.")
    facts = read_json(FACTS)[name]
    options = ", ".join(f"`{k}={v!r}`" for k, v in facts["options"].items())
    parts = [
        f"{what}: largest change {facts[key]['largest']} of 255, {100 * facts[key]['changed']:.0f} % of the pixels changed"
        for what, key in (("Photo", "photo"), ("digit", "digit"))
    ]
    text = f"Clean, stamped, difference x {TIMES}. {'; '.join(parts)}."
    if facts["fitted"] == "trained":
        text += f" The trigger was trained on a small stand-in, together with a victim by `{RECIPE}`."
    elif facts["fitted"]:
        text += f" The trigger was fitted on a small stand-in{f', with {options}' if options else ''}."
    return " ".join([text, NOTES.get(name, "")]).strip()


def main() -> None:
    """Draw everything."""
    for name in drawable():
        print(name, json.dumps(draw(name)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
