"""How fast rows are poisoned: each static trigger on a batch, beside the same formula in a loop over images.

    python benchmarks/triggers.py --rows 50000 --out benchmarks/results

Random color images; every row is stamped. The loop is NumPy on one (H, W, C) image after the other, with everything that does
not depend on the image made beforehand; its first rows are compared with those of the batch. ``items`` is the same loop as a
data set works that hands out single images: an image library's object in, stamped, such an object out, then a tensor. ``files``
is the loop of tools that keep images as files: decode a PNG, stamp, encode a PNG. ``copy`` is the time of copying the same rows
to new memory, the least that any poisoning can take. On a loaded machine use ``--clock cpu`` (one thread, CPU time).
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.fft import dctn, idctn
from table import Table
from torch.nn import functional as F

import theriac as th
from theriac.attacks import SIG, BadNets, Blended, BppAttack, FTrojan, WaNet
from theriac.attacks.base import Attack
from theriac.core.planted import Planted
from theriac.triggers.additive import sinusoid
from theriac.triggers.patterns import picture
from theriac.triggers.quantize import levels
from theriac.triggers.warp import identity_grid

One = Callable[[np.ndarray], np.ndarray]
TO_YCRCB = np.array([[0.299, 0.587, 0.114], [0.5, -0.418688, -0.081312], [-0.168736, -0.331264, 0.5]])


def encode(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def decode(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)))


def bare(single: One, images: list[np.ndarray]) -> list[np.ndarray]:
    """One array after the other."""
    return [single(image) for image in images]


def as_items(single: One, images: list[Image.Image]) -> torch.Tensor:
    """The items of a data set of PIL images, stamped and collated."""
    out = [Image.fromarray(single(np.array(image))) for image in images]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in out])


def as_files(single: One, pngs: list[bytes]) -> list[bytes]:
    """Images that are kept as files."""
    return [encode(single(decode(png))) for png in pngs]


def to_bytes(image: np.ndarray) -> np.ndarray:
    clipped: np.ndarray = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return clipped


def loops(side: int, planted: dict[str, Planted]) -> dict[str, One]:
    """One function of one (H, W, 3) image for each trigger."""
    cartoon = picture(3, (side, side), 0).permute(1, 2, 0).numpy().astype(np.float32)
    wave = np.rint(sinusoid(3, (side, side), 40.0, 6.0).permute(1, 2, 0).numpy())
    to_rgb = np.linalg.inv(TO_YCRCB)
    grid = (identity_grid((side, side)) + 0.5 * planted["wanet"].state["field"] / side).clamp(-1, 1)[None]
    table = levels(8).numpy()
    patch = max(2, int(3 * side / 32 + 0.5))

    def badnets(image: np.ndarray) -> np.ndarray:
        out = image.copy()
        out[-patch:, -patch:] = 255
        return out

    def blended(image: np.ndarray) -> np.ndarray:
        return to_bytes(image * np.float32(0.8) + cartoon * np.float32(0.2))

    def sig(image: np.ndarray) -> np.ndarray:
        return to_bytes(image + wave)

    def ftrojan(image: np.ndarray) -> np.ndarray:
        planes = image @ TO_YCRCB.T
        for channel in (1, 2):
            freq = dctn(planes[..., channel], norm="ortho")
            freq[side // 2 - 1, side // 2 - 1] += 30
            freq[-1, -1] += 30
            planes[..., channel] = idctn(freq, norm="ortho")
        return to_bytes(planes @ to_rgb.T)

    def wanet(image: np.ndarray) -> np.ndarray:
        one = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        return to_bytes(F.grid_sample(one, grid, align_corners=True)[0].permute(1, 2, 0).numpy())

    def bpp(image: np.ndarray) -> np.ndarray:
        return to_bytes(np.rint(np.rint(image / 255 * 7) * 255 / 7))

    def bpp_dither(image: np.ndarray) -> np.ndarray:
        work = np.pad(image.astype(float), ((0, 1), (1, 1), (0, 0)))
        for row in range(side):
            for column in range(1, side + 1):
                old = work[row, column].copy()
                new = table[np.clip(np.rint(old * 7 / 255), 0, 7).astype(int)]
                error = old - new
                work[row, column] = new
                work[row, column + 1] += error * 7 / 16
                work[row + 1, column - 1] += error * 3 / 16
                work[row + 1, column] += error * 5 / 16
                work[row + 1, column + 1] += error / 16
        return work[:-1, 1:-1].astype(np.uint8)

    made = (badnets, blended, sig, ftrojan, wanet, bpp, bpp_dither)
    return {f.__name__: f for f in made}


def timed(work: Callable[[], Any], repeats: int, clock: Callable[[], float], device: torch.device) -> list[float]:
    """Seconds of each repeat, after one warm-up."""
    seconds = []
    for number in range(repeats + 1):
        began = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number:
            seconds.append(clock() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50000)
    parser.add_argument(
        "--loop-rows", type=int, default=2000, help="images that the loops handle (2 percent of it for dithering)"
    )
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (args.rows, 3, args.side, args.side), generator=draw, dtype=torch.uint8)
    split = th.Split(x, torch.arange(args.rows) % 10).to(device)
    everything = torch.arange(args.rows, device=device)

    attacks: dict[str, Attack] = {
        "badnets": BadNets(),
        "blended": Blended(),
        "sig": SIG(),
        "ftrojan": FTrojan(),
        "wanet": WaNet(),
        "bpp": BppAttack(),
        "bpp_dither": BppAttack(dithering=True),
    }
    planted = {name: attack.plant(split) for name, attack in attacks.items()}
    singles = loops(args.side, planted)
    copy = statistics.median(timed(lambda: split.rows(everything), args.repeats, clock, device))

    def stamp(name: str) -> torch.Tensor:  # as poison() does it
        out = torch.empty_like(x, device=device)
        for p in everything.split(1024):
            out[p[0] : p[-1] + 1] = planted[name].stamp(split.rows(p), split.y[p], split.index[p], "train")
        return out

    results = []
    for name, single in singles.items():
        count = max(1, args.loop_rows // 50) if name == "bpp_dither" else args.loop_rows
        images = [image.numpy() for image in x[:count].permute(0, 2, 3, 1).contiguous()]
        pngs = [encode(image) for image in images]
        objects = [Image.fromarray(image) for image in images]
        cpu = torch.device("cpu")
        batch = timed(partial(stamp, name), args.repeats, clock, device)
        one = timed(partial(bare, single, images), args.repeats, clock, cpu)
        items = timed(partial(as_items, single, objects), args.repeats, clock, cpu)
        files = timed(partial(as_files, single, pngs), args.repeats, clock, cpu)
        gap = np.abs(
            np.stack([single(i) for i in images]).astype(int)
            - stamp(name)[:count].permute(0, 2, 3, 1).cpu().numpy().astype(int)
        )
        rate = args.rows / statistics.median(batch)
        loop_rate, item_rate, file_rate = (count / statistics.median(seconds) for seconds in (one, items, files))
        record = {
            "trigger": name,
            "images_per_s": round(rate),
            "loop_images_per_s": round(loop_rate),
            "items_images_per_s": round(item_rate),
            "files_images_per_s": round(file_rate),
            "times_loop": round(rate / loop_rate, 1),
            "times_items": round(rate / item_rate, 1),
            "times_files": round(rate / file_rate, 1),
            "times_copy": round(statistics.median(batch) / copy, 2),
            "batch_seconds": [round(s, 5) for s in batch],
            "loop_seconds": [round(s, 5) for s in one],
            "items_seconds": [round(s, 5) for s in items],
            "files_seconds": [round(s, 5) for s in files],
            "loop_rows": count,
            "pixels_that_differ": float((gap > 0).mean()),
            "largest_difference": int(gap.max()),
        }
        results.append(record)
        print(
            f"{name:12s}{rate:11,.0f} images/s  loop{loop_rate:10,.0f} ({record['times_loop']:.1f} x)"
            f"  items{item_rate:8,.0f} ({record['times_items']:.0f} x)"
            f"  files{file_rate:8,.0f} ({record['times_files']:.0f} x)  {record['times_copy']:6.2f} copies"
            f"  differ {record['pixels_that_differ']:.1e}",
            flush=True,
        )
    if args.out:
        record = {
            "schema": 1,
            "what": "poisoning speed of static triggers",
            "rows": args.rows,
            "shape": [3, args.side, args.side],
            "clock": args.clock,
            "copy_seconds": round(copy, 5),
            "results": results,
            "machine": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "theriac": th.__version__,
                "threads": args.threads,
                "device": str(device),
                "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
                "processor": platform.machine(),
            },
            "command": "python benchmarks/triggers.py "
            f"--rows {args.rows} --loop-rows {args.loop_rows} --repeats {args.repeats} --clock {args.clock} --device {device}",
        }
        Table.of("triggers", args.out).put("triggers", record)


if __name__ == "__main__":
    main()
