"""Benign files as other tools write them: each is made, and how it is opened is said, so that what loads can be counted."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import pathlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

Case = tuple[str, str, Callable[[], object], Callable[[], object] | None]  # kind, name, how it is opened, and with which option


def net() -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), flat=nn.Flatten(), fc=nn.Linear(144, 5)))


class Options:
    """What a training script may keep: an object of a class that only the script knows."""

    def __init__(self) -> None:
        self.lr = 0.1


def checkpoints() -> Iterator[tuple[str, Any]]:
    """Contents of checkpoints, by who writes them so."""
    model = net()
    state = model.state_dict()
    plain = {k: v.clone() for k, v in state.items()}
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    adam.step()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, [3, 5])  # its state holds a Counter
    space = argparse.Namespace(lr=0.1, arch="resnet18", data=pathlib.Path("x"), nested=argparse.Namespace(a=1))
    yield "a state dict", state
    yield "a plain dict", plain
    yield "parameters", dict(model.named_parameters())
    yield "data parallel", OrderedDict((f"module.{k}", v) for k, v in state.items())
    yield "half precision", {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
    yield "float16", {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    yield "tied", {**state, "a.weight": state["fc.weight"], "b.weight": state["fc.weight"][:2]}
    yield "sparse", {**plain, "fc.weight": plain["fc.weight"].to_sparse()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls these layouts beta
        yield "sparse rows", {**plain, "fc.weight": plain["fc.weight"].to_sparse_csr()}
    yield "quantized", {**plain, "fc.weight": torch.quantize_per_tensor(plain["fc.weight"], 0.01, 0, torch.qint8)}
    by_row = torch.quantize_per_channel(
        plain["fc.weight"], torch.full((5,), 0.01), torch.zeros(5, dtype=torch.int64), 0, torch.qint8
    )
    yield "quantized by channel", {**plain, "fc.weight": by_row}
    yield (
        "imagenet example",
        {"epoch": 3, "arch": "x", "state_dict": state, "best_acc1": torch.tensor(71.5), "optimizer": sgd.state_dict()},
    )
    yield (
        "optimizer and schedule",
        {"model": state, "optimizer": adam.state_dict(), "scheduler": schedule.state_dict(), "step": 7},
    )
    yield "kuangliu", {"net": state, "acc": 95.1, "epoch": 199}
    yield "numpy scores", {"state_dict": state, "best": np.float64(0.93), "curve": np.arange(5.0), "flags": np.array([True])}
    yield "numpy text and order", {"state_dict": state, "names": np.array(["cat", "mouse"]), "big": np.arange(3, dtype=">i4")}
    generator = {"torch": torch.get_rng_state(), "numpy": np.random.RandomState(0).get_state()}
    yield "random states", {"model": state, "rng": generator}
    kinds = {"size": torch.Size([1, 2]), "device": torch.device("cpu"), "dtype": torch.bfloat16, "version": torch.__version__}
    yield "types of torch", {"model": state, **kinds}
    odd = {
        "set": {1, 2},
        "frozen": frozenset("ab"),
        "bytes": b"x",
        "complex": 1 + 2j,
        "slice": slice(1, 2),
        "none": None,
        "big": 2**70,
    }
    yield "types of Python", {"model": state, **odd}
    yield (
        "defaultdict",
        {"model": state, "log": collections.defaultdict(list, loss=[1.0, 2.0]), "count": collections.Counter("aab")},
    )
    yield "ordered and nested", {"model": {"state_dict": state}, "meta": OrderedDict(a=[(1, "x"), {"k": (None, True)}])}
    yield "a tuple key", {"model": state, "cells": {(1, "a"): 2.5, 3: "x"}}
    yield "a long history", {"model": state, "loss": [float(i) for i in range(20_000)]}
    yield "empty tensors", {**plain, "fc.extra": torch.empty(0, 4)}
    yield "transposed views", {**plain, "fc.weight": torch.randn(144, 5).t()}
    yield "swa", {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in state.items()}}
    yield (
        "gray rows in three channels",
        {"x": torch.zeros(50, 1, 8, 8, dtype=torch.uint8).expand(-1, 3, -1, -1), "y": torch.arange(50) % 2},
    )
    yield "timm", {"epoch": 1, "arch": "x", "state_dict": state, "state_dict_ema": state, "args": space, "metric": 70.1}
    lightning = {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.2.0",
        "state_dict": OrderedDict((f"model.{k}", v) for k, v in state.items()),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5), "best_model_path": "a.ckpt"}
        },
        "optimizer_states": [adam.state_dict()],
        "lr_schedulers": [schedule.state_dict()],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "layers": (1, 2)},
    }
    yield "lightning", lightning
    yield "lightning, a namespace", {**lightning, "hyper_parameters": space}
    yield "lightning, a path", {**lightning, "callbacks": {"x": {"dirpath": pathlib.PurePosixPath("a/b")}}}
    yield "a date", {"model": state, "when": datetime.datetime(2024, 1, 2), "took": datetime.timedelta(3)}
    yield "a namespace in an old way", {"net": state, "args": argparse.Namespace(lr=0.1)}
    yield "options of a class of one's own*", {"net": state, "options": Options()}


def torch_files(folder: Path) -> Iterator[Case]:
    from theriac.core.files import load_tensors_safely

    ways: dict[str, dict[str, Any]] = {
        "zip": {},
        "old": {"_use_new_zipfile_serialization": False},
        "zip, protocol 3": {"pickle_protocol": 3},
        "zip, protocol 4": {"pickle_protocol": 4},
        "zip, protocol 5": {"pickle_protocol": 5},
        "old, protocol 4": {"pickle_protocol": 4, "_use_new_zipfile_serialization": False},
    }
    for k, (name, content) in enumerate(checkpoints()):
        for way, options in ways.items():
            path = folder / f"{k}_{way.replace(', ', '_')}.pt"
            torch.save(content, path, **options)

            def load(path: Path = path, **more: Any) -> object:
                return load_tensors_safely(path, **more)

            option = (lambda load=load: load(tensors_only=True)) if name.endswith("*") else None
            yield "torch", f"{name.rstrip('*')} ({way})", load, option


def weights(folder: Path) -> Iterator[Case]:
    """Checkpoints that fit a network, loaded into it."""
    from safetensors.torch import save_file

    from theriac.models import load_weights

    fits = {
        "a state dict",
        "parameters",
        "data parallel",
        "half precision",
        "float16",
        "sparse",
        "sparse rows",
        "quantized",
        "swa",
    }
    fits |= {
        "imagenet example",
        "optimizer and schedule",
        "kuangliu",
        "numpy scores",
        "lightning",
        "timm",
        "a date",
        "ordered and nested",
    }
    for k, (name, content) in enumerate(checkpoints()):
        if name not in fits:
            continue
        if name == "parameters":
            content = {**net().state_dict(), **content}
        path = folder / f"fits{k}.pth"
        torch.save(content, path)

        def load(path: Path = path, **more: Any) -> object:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # which of two state dicts was taken
                return load_weights(net(), path, **more)

        option = (lambda load=load: load(tensors_only=True)) if name.endswith("*") else None
        yield "load_weights", name.rstrip("*"), load, option
    save_file(net().state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    yield "load_weights", "safetensors", lambda: load_weights(net(), folder / "model.safetensors"), None
    torch.save(net().state_dict(), folder / "pytorch_model.bin")
    yield "load_weights", "pytorch_model.bin", lambda: load_weights(net(), folder / "pytorch_model.bin"), None


def arrays(folder: Path) -> Iterator[Case]:
    import theriac as th

    x, y = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 2

    def save(name: str, write: Callable[..., object], suffix: str = "npz", **parts: Any) -> Case:
        path = folder / f"{name.replace(' ', '_')}.{suffix}"
        write(path, **parts)
        return "arrays", name, lambda: th.load(path), None

    def tensors(path: Path, **parts: Any) -> None:
        torch.save(parts, path)

    def pair(path: Path, **parts: Any) -> None:
        torch.save((parts["x"], parts["y"]), path)

    yield save("npz", np.savez, x=x, y=y)
    yield save("npz packed", np.savez_compressed, x=x, y=y)
    yield save("npz of mostly zeros", np.savez_compressed, x=np.zeros((3000, 28, 28), np.uint8), y=np.arange(3000) % 2)
    yield save("npz keras", np.savez_compressed, x_train=x, y_train=y, x_test=x, y_test=y)
    yield save("npz text labels", np.savez, x=x, y=np.array(["cat", "dog"])[y])
    yield save("npz fortran order", np.savez, x=np.asfortranarray(x), y=y)
    yield save("npz big endian", np.savez, x=x.astype(">i4"), y=y)
    yield save("npz with more", np.savez, x=x, y=y, W=x, w=y, note=np.array("hello"))
    yield save("npz floats", np.savez, x=(x / 255).astype(np.float32), y=y[:, None])
    yield save("npz table", np.savez, x=np.random.default_rng(0).normal(size=(40, 3)), y=y)
    yield save("pt tensors", tensors, "pt", x=torch.tensor(x), y=torch.tensor(y))
    yield save("pt arrays", tensors, "pt", x=x, y=y)
    yield save("pt list of labels", tensors, "pt", x=torch.tensor(x), y=y.tolist())
    yield save("pt pair", pair, "pt", x=torch.tensor(x), y=torch.tensor(y))


def pictures(folder: Path) -> Iterator[Case]:
    from PIL import Image

    import theriac as th

    pixels = np.random.default_rng(0).integers(0, 256, (9, 10, 4), dtype=np.uint8)
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (9, 10), dtype=np.uint16))
    rgba = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (rgba.convert("RGB"), "png", {}),
        "png with alpha": (rgba, "png", {}),
        "png palette": (rgba.convert("RGB").quantize(16), "png", {}),
        "png 1 bit": (rgba.convert("1"), "png", {}),
        "png 16 bit": (deep, "png", {}),
        "png gray": (rgba.convert("L"), "png", {}),
        "png gray with alpha": (rgba.convert("LA"), "png", {}),
        "png interlaced text": (rgba.convert("RGB"), "png", {"dpi": (72, 72)}),
        "jpeg": (rgba.convert("RGB"), "jpg", {}),
        "jpeg progressive": (rgba.convert("RGB"), "jpeg", {"progressive": True}),
        "jpeg cmyk": (rgba.convert("CMYK"), "jpg", {}),
        "jpeg rotated": (rgba.convert("RGB"), "jpg", {"exif": exif}),
        "bmp": (rgba.convert("RGB"), "bmp", {}),
        "webp": (rgba.convert("RGB"), "webp", {}),
        "webp lossless alpha": (rgba, "webp", {"lossless": True}),
        "ppm": (rgba.convert("RGB"), "ppm", {}),
        "pgm": (rgba.convert("L"), "pgm", {}),
        "plain color": (Image.new("RGB", (300, 300)), "png", {}),
    }
    for name, (image, suffix, options) in kinds.items():
        root = folder / name.replace(" ", "_")
        for part in ("cats", "dogs & co"):
            (root / part).mkdir(parents=True)
            for i in range(3):
                image.save(root / part / f"{i}.{suffix}", **options)
        yield "pictures", name, lambda root=root: th.load(root), None


def tables(folder: Path) -> Iterator[Case]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    import theriac as th

    rows = {
        "age": list(range(20, 60)),
        "job": ["nurse", "clerk, junior", 'so-called "boss"', "clerk"] * 10,
        "label": ["yes", "no", "no", "yes"] * 10,
    }
    table = pa.table(rows)
    texts = {
        "csv": (",", ""),
        "csv semicolon": (";", ""),
        "csv tab": ("\t", ""),
        "csv with a mark": (",", "\ufeff"),
        "csv of Windows": (",", ""),
    }
    for name, (comma, start) in texts.items():
        lines = [comma.join(rows)]
        quoted = ['"{}"'.format(v.replace('"', '""')) for v in rows["job"]]
        lines += [comma.join(map(str, line)) for line in zip(rows["age"], quoted, rows["label"], strict=True)]
        path = folder / f"{name.replace(' ', '_')}.csv"
        path.write_bytes((start + ("\r\n" if "Windows" in name else "\n").join(lines) + "\n").encode())
        yield "tables", name, lambda path=path: th.load(path), None
    coded = pa.table({c: table[c].dictionary_encode() if c != "age" else table[c] for c in rows})
    long = pa.table({"a": pa.array(np.arange(200_000) % 7), "job": ["nurse", "clerk"] * 100_000, "label": [0, 1] * 100_000})
    for name, data, options in (
        ("parquet", table, {}),
        ("parquet zstd", table, {"compression": "zstd"}),
        ("parquet plain", table, {"compression": "none", "use_dictionary": False}),
        ("parquet gzip", table, {"compression": "gzip"}),
        ("parquet categories", coded, {}),
        (
            "parquet large text",
            table.cast(pa.schema([("age", pa.int32()), ("job", pa.large_string()), ("label", pa.large_string())])),
            {},
        ),
        ("parquet small groups", table, {"row_group_size": 7}),
        ("parquet version 1", table, {"version": "1.0"}),
        ("parquet of few values", long, {"compression": "zstd"}),
    ):
        path = folder / f"{name.replace(' ', '_')}.parquet"
        pq.write_table(data, path, **options)
        yield "tables", name, lambda path=path: th.load(path), None

    def blob(k: int) -> bytes:
        sink = io.BytesIO()
        Image.new("RGB", (8, 8), (k, 2 * k, 3)).save(sink, "PNG")
        return sink.getvalue()

    for name, column in (
        ("parquet pictures", pa.array([{"bytes": blob(k), "path": None} for k in range(40)])),
        ("parquet bytes", pa.array([blob(k % 3) for k in range(40)])),
    ):
        path = folder / f"{name.replace(' ', '_')}.parquet"
        pq.write_table(pa.table({"image": column, "label": [0, 1] * 20}), path)
        yield "tables", name, lambda path=path: th.load(path), None


GROUPS = {f.__name__: f for f in (torch_files, weights, arrays, pictures, tables)}


def count(folder: Path) -> dict[str, tuple[int, int, int, list[str]]]:
    """By kind: files that load as they are, those that load with their option, all of them, and what was said of the rest."""
    found: dict[str, tuple[int, int, int, list[str]]] = {}
    for group, make in GROUPS.items():
        (folder / group).mkdir(parents=True)
        for kind, name, load, option in make(folder / group):
            once, opted, total, said = found.get(kind, (0, 0, 0, []))
            for step in (load, option):
                if step is None:
                    continue
                try:
                    step()
                except Exception as error:
                    if step is option or option is None:
                        said.append(f"{name}: {type(error).__name__}: {error}")
                else:
                    once, opted = (once, opted + 1) if step is option else (once + 1, opted)
                    break
            found[kind] = (once, opted, total + 1, said)
    return found
