"""Small files that run something when their usual reader opens them, by way of loading; all they could do is `mkdir`."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.marker),)


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return bytes([number << 3, value])
    size, out = len(value), b""
    while size > 127:
        out, size = out + bytes([size & 127 | 128]), size >> 7
    key = number << 3 | 2
    head = bytes([key]) if key < 128 else bytes([key & 127 | 128, key >> 7])
    return head + out + bytes([size]) + value


def onnx(node: bytes = b"", initializer: bytes = b"") -> bytes:
    graph = field(1, node) + (field(5, initializer) if initializer else b"")
    return field(1, 8) + field(7, graph) + field(8, field(2, 17))


def gguf(template: str) -> bytes:
    def text(word: str) -> bytes:
        return struct.pack("<Q", len(word.encode())) + word.encode()

    pairs = text("general.tags") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    pairs += text("tokenizer.chat_template") + struct.pack("<I", 8) + text(template)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + pairs


def tarred(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return out.getvalue()


def paths_of_loading(marker: Path) -> dict[str, tuple[str, bytes, str, str]]:
    """Name to: file name, contents, level and a word that must be named."""
    bad = pickle.dumps(Evil(marker))
    objects = io.BytesIO()
    np.save(objects, np.array([Evil(marker)], dtype=object), allow_pickle=True)
    arrays = io.BytesIO()
    np.savez(arrays, x=np.array([Evil(marker)], dtype=object))
    lambda_layer = json.dumps({"class_name": "Lambda", "config": {"function": ["4wEAAA", None, None]}}).encode()
    outside = field(8, b"w") + field(13, field(1, b"location") + field(2, b"../../etc/passwd"))
    script = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), script)
    joblib = b"\x80\x04\x8c\x1ajoblib.numpy_pickle.things\x94" + bytes(40) + bad  # a payload behind raw bytes
    return {
        "pickle": ("model.pkl", bad, "runs", "mkdir"),
        "pickle, protocol 0": ("model.pickle", pickle.dumps(Evil(marker), 0), "runs", "mkdir"),
        "pickle under another name": ("weights.bin", bad, "runs", "mkdir"),
        "two pickles": ("model.pkl", pickle.dumps(1) + bad, "runs", "mkdir"),
        "joblib": ("model.joblib", joblib, "runs", "mkdir"),
        "gzip": ("model.pkl.gz", gzip.compress(bad), "runs", "mkdir"),
        "bzip2": ("model.pkl.bz2", bz2.compress(bad), "runs", "mkdir"),
        "xz": ("model.pkl.xz", lzma.compress(bad), "runs", "mkdir"),
        "zlib": ("model.joblib", zlib.compress(bad), "runs", "mkdir"),
        "pickle in a zip": ("model.zip", zipped(a__x_dot_pkl=bad), "runs", "mkdir"),
        "pickle in a tar": ("model.tar", tarred("x.pkl", bad), "runs", "mkdir"),
        "tar that leaves its folder": ("model.tar", tarred("../x", b"1"), "code", "outside"),
        "npy of objects": ("x.npy", objects.getvalue(), "runs", "mkdir"),
        "npz of objects": ("x.npz", arrays.getvalue(), "runs", "mkdir"),
        "Keras 3 Lambda": ("m.keras", zipped(config_dot_json=lambda_layer), "runs", "Lambda"),
        "HDF5 Lambda": ("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(50) + lambda_layer, "runs", "Lambda"),
        "TorchScript": ("m.pt", script.getvalue(), "code", "TorchScript"),
        "torch.package": ("m.pt", zipped(m___dot_data__extern_modules=b"os", m__x_dot_py=b"1"), "code", "package"),
        "GGUF template": ("m.gguf", gguf("{{ x.__class__.__mro__ }}"), "runs", "chat template"),
        "ONNX operator": ("m.onnx", onnx(field(4, b"Evil") + field(7, b"my.domain")), "code", "my.domain.Evil"),
        "ONNX weights elsewhere": ("m.onnx", onnx(field(4, b"Relu"), outside), "runs", "etc/passwd"),
        "SavedModel": ("saved_model.pb", b"\x0a\x08PyFunc\x12WriteFile", "code", "WriteFile"),
        "Python": ("modeling.py", b"import os\n", "code", "Python"),
        "auto_map": ("config.json", b'{"auto_map": {"AutoModel": "modeling.M"}}', "code", "auto_map"),
        "YAML tag": ("hparams.yaml", b"x: !!python/object/apply:os.system [ls]\n", "runs", "YAML"),
        "program": ("kernel.so", b"\x7fELF" + bytes(60), "runs", "native"),
        "7z": ("model.pt", b"7z\xbc\xaf\x27\x1c" + bytes(30), "unread", "7z"),
        "TFLite": ("m.tflite", bytes(4) + b"TFL3" + bytes(30), "unread", "TFLite"),
        "R": ("m.rds", b"RDX3\n" + bytes(30), "unread", "R object"),
    }
