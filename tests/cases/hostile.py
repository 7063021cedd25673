"""Small hostile files, and a command that opens each of them under limits.

    python tests/cases/hostile.py GROUP FOLDER     # pickles, archives, arrays, tables, pictures or records

makes the files of a group, opens each as a user would, and prints one JSON line for each: what was said, seconds, peak memory.
Nothing in them could run more than ``mkdir`` of a marker, and no marker may ever be there.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import socket
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

Case = tuple[str, Path, str]  # name, file, and what the refusal must say
LIMIT = 8 << 30  # address space; torch alone maps some

# pickles


def text(word: str) -> bytes:
    data = word.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short(word: str) -> bytes:
    return b"\x8c" + bytes([len(word)]) + word.encode()


def archive(path: Path, program: bytes, members: dict[str, bytes] | None = None, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        for name, data in {"data.pkl": program, "byteorder": b"little", "version": b"3\n", **(members or {})}.items():
            out.writestr(f"model/{name}", data)
    return path


def legacy(path: Path, program: bytes) -> Path:
    head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path.write_bytes(head + program + pickle.dumps([], 2))
    return path


def programs(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that import or call, by the opcode that does it; and what a refusal must name."""
    word = text(str(marker))
    call = b"\x80\x02cposix\nmkdir\n" + word + b"\x85R."
    return {
        "global": (call, "posix.mkdir"),
        "inst": (b"(" + word + b"iposix\nmkdir\n.", "posix.mkdir"),
        "obj": (b"\x80\x02(cposix\nmkdir\n" + word + b"o.", "posix.mkdir"),
        "stack_global": (b"\x80\x04" + short("posix") + short("mkdir") + b"\x93" + word + b"\x85R.", "posix.mkdir"),
        "memoized": (
            b"\x80\x04"
            + short("posix")
            + b"\x94"
            + short("mkdir")
            + b"\x94"
            + text("os")
            + text("path")
            + b"00h\x00h\x01\x93)R.",
            "posix.mkdir",
        ),
        "put_out_of_order": (b"\x80\x04" + short("mkdir") + b"q\x07" + short("posix") + b"h\x07\x93)R.", "posix.mkdir"),
        "newobj_ex": (b"\x80\x04" + short("posix") + short("mkdir") + b"\x93)}\x92.", "posix.mkdir"),
        "dict_subclass_item": (b"\x80\x02cmy.stuff\nConfig\n)\x81X\x01\x00\x00\x00aK\x01s.", "my.stuff.Config"),
        "extension": (b"\x80\x02\x82\x2a.", "extension 42"),
        "persistent_id": (b"P1234\n.", "persistent id 1234"),
        "persistent_module": (b"\x80\x02(X\x06\x00\x00\x00moduleK\x01tQ.", "persistent id of a module"),
        "build": (b"\x80\x02cbuiltins\nobject\n)R}X\x09\x00\x00\x00__class__K\x01sb.", "builtins.object"),
        "getattr": (b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\n" + word + b"\x86R.", "builtins.getattr, os.system"),
        "python_2": (b"c__builtin__\neval\n(S'1'\ntR.", "builtins.eval"),
        "nested": (b"\x80\x02ctorch.storage\n_load_from_bytes\nU" + bytes([len(call)]) + call + b"\x85R.", "_load_from_bytes"),
        "escape_codes": (b"\x80\x02cos\x1b[2J\nsystem\n)R.", "system"),
        "long_name": (b"\x80\x02c" + b"a" * 100_000 + b"\nb\n)R.", "aaa"),
        "many_names": (b"\x80\x02" + b"".join(b"cmod%d\nf\n0" % i for i in range(20_000)) + b"N.", "mod0.f"),
        "after_fine_ones": (b"\x80\x02(ccollections\nOrderedDict\n)Rcshutil\nrmtree\nt.", "shutil.rmtree"),
        "cuda_byte_tensor": (b"\x80\x02ctorch.cuda\nByteTensor\nK\x01\x85R.", "torch.cuda.ByteTensor"),
        "byte_tensor": (b"\x80\x02ctorch\nByteTensor\n(J\x80\x1a\x06\x00K\x03K@K@tR.", "torch.ByteTensor"),
        "codec": (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.", "_codecs.encode"),
        "bytearray_of_8_gib": (b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x02\x85R.", "builtins.bytearray"),
        "complex_of_text": (b"\x80\x02cbuiltins\ncomplex\nX\x01\x00\x00\x00a\x85R.", "builtins.complex"),
        "call_of_a_type": (b"\x80\x02ctorch\nFloatStorage\nJ\xff\xff\xff\x7f\x85R.", "torch.FloatStorage"),
        "object_array": (b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R.", "numpy.dtype"),
        "size_of_text": (b"\x80\x02ctorch\nSize\nX\x02\x00\x00\x00O8\x85R.", "torch.Size"),
    }


def heavy(width: int = 3) -> dict[str, tuple[bytes, str]]:
    """Pickles that take for ever or fill the memory."""
    key = b"K\x00\x85q\x00" + b"".join(b"h%c" % i * width + b"\x87q%c" % (i + 1) for i in range(40))
    deep = b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b"."
    big = text("x" * (6 << 20))
    numbers = b"".join(b"\x8a\x08" + struct.pack("<q", k * ((1 << 61) - 1) % (1 << 63)) + b"N" for k in range(1, 4))
    return {
        "tuple_key": (b"\x80\x02}" + key + b"Ns.", "key"),
        "tuple_in_a_set": (b"\x80\x04\x8f(" + key + b"\x90.", "key"),
        "many_lists": (b"\x80\x02" + b"]" * (40 << 20) + b".", "more objects"),
        "many_marks": (b"\x80\x02" + b"(" * (40 << 20) + b".", "more objects"),
        "many_memos": (b"\x80\x04N" + b"\x94" * (30 << 20) + b".", "more objects"),
        "deep_lists": (deep, ""),
        "many_byte_strings": (b"\x80\x02(c_codecs\nencode\nq\x00" + big + b"X\x06\x00\x00\x00latin1\x86q\x010" + b"h\x00h\x01R" * 500 + b"t.", "more objects"),  # noqa: E501
        "colliding_keys": (b"\x80\x02}(" + numbers + b"u.", "key"),
        "long_pickle": (b"\x80\x02B" + struct.pack("<I", 70 << 20) + bytes(70 << 20) + b".", "at most"),
        "empty": (b"", "damaged"),
        "only_stop": (b".", "damaged"),
        "stack_underflow": (b"\x80\x02R.", "damaged"),
        "missing_memo": (b"\x80\x02h\x09.", "damaged"),
        "mark_below": (b"\x80\x02t.", "damaged"),
        "false_length": (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
    }  # fmt: skip


def tensor(
    size: tuple[int, ...], stride: tuple[int, ...], count: int = 8, offset: int = 0, kind: bytes = b"ByteStorage"
) -> bytes:
    def whole(n: int) -> bytes:
        return b"\x8a\x09" + n.to_bytes(9, "little", signed=True)

    place = (
        b"((" + text("storage") + b"ctorch\n" + kind + b"\n" + text("0") + text("cpu") + whole(count) + b"tQ" + whole(offset)
    )
    shape = b"(" + b"".join(map(whole, size)) + b"t(" + b"".join(map(whole, stride)) + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + place + shape + b"\x89ccollections\nOrderedDict\n)RtR"


def pickles(folder: Path) -> Iterator[Case]:
    for name, (program, says) in programs(folder / "marker").items():
        yield f"{name} in an archive", archive(folder / f"{name}.pt", program), says
        if not name.startswith(("many", "long")):
            yield f"{name} in an old file", legacy(folder / f"{name}_old.pth", program), says
    for name, (program, says) in heavy().items():
        yield name, archive(folder / f"{name}.pt", program), says
    for name, made, says in (
        ("strides of zero", tensor((1 << 40,), (0,)), "stores fewer"),
        ("beyond its storage", tensor((9,), (1,)), "beyond"),
        ("an offset beyond its storage", tensor((1,), (1,), offset=9), "beyond"),
        ("a negative size", tensor((-1,), (1,)), "no sizes"),
        ("a negative stride", tensor((2,), (-1,)), "no sizes"),
        ("sizes that overflow", tensor((1 << 33, 1 << 33), (0, 0)), ""),
        ("a storage larger than its member", tensor((8,), (1,), count=1 << 40), "lacks the storage"),
        ("a storage of no known kind", tensor((8,), (1,), kind=b"EvilStorage"), "torch.EvilStorage"),
    ):
        yield (
            name,
            archive(folder / f"{name.replace(' ', '_')}.pt", b"\x80\x02}" + text("w") + made + b"s.", {"data/0": bytes(8)}),
            says,
        )
    path = legacy(folder / "claims.pth", b"\x80\x02" + tensor((1,), (1,), count=1 << 44) + b".")
    yield "an old file that claims 16 TB", path, "more than the file holds"


# archives


def bomb(path: Path, size: int = 600 << 20, name: str = "model/data/0") -> bytes:
    """Zeros that unpack to far more than they are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("model/data.pkl", b"\x80\x02}" + text("w") + tensor((size,), (1,), count=size) + b"s.")
        with out.open(name, "w") as sink:
            for _ in range(size >> 20):
                sink.write(bytes(1 << 20))
    return path.read_bytes()


def ends(data: bytes) -> tuple[int, int, int]:
    end = data.rfind(b"PK\x05\x06")
    return end, *struct.unpack("<II", data[end + 12 : end + 20])


def archives(folder: Path) -> Iterator[Case]:
    def put(name: str, data: bytes, says: str) -> Case:
        path = folder / f"{name.replace(' ', '_')}.pt"
        path.write_bytes(data)
        return name, path, says

    small = archive(folder / "small.pt", b"\x80\x02}.", {"data/0": bytes(100)}, zipfile.ZIP_STORED).read_bytes()
    end, size, offset = ends(small)
    table = small[offset : offset + size]
    big = bomb(folder / "bomb.pt")
    yield "a bomb", folder / "bomb.pt", "unpacks to"
    big_end, big_size, big_offset = ends(big)
    fake = bytearray(big[big_offset : big_offset + big_size])
    at = 0
    while at < len(fake):
        name, extra, comment = struct.unpack("<HHH", fake[at + 28 : at + 34])
        fake[at + 24 : at + 28] = struct.pack("<I", 10)
        at += 46 + name + extra + comment
    yield put("two directories", big[:big_end] + bytes(fake) + big[big_end:], "not where the end record says")
    yield put("data before the archive", b"#!/bin/sh\n" + small, "")
    yield put("a comment", small[:-2] + struct.pack("<H", 22) + small[-22:], "")
    yield put("a comment that hides the end", small[:-2] + struct.pack("<H", 4) + b"abcd", "")
    yield put("a second archive behind", small + small, "")
    yield put(
        "data between members and directory",
        small[:offset] + bytes(100) + table + small[end : end + 16] + struct.pack("<I", offset + 100) + small[-2:],
        "",
    )
    extra = b"\x99\x99\x50\x00ab"
    name_length = struct.unpack("<H", table[28:30])[0]
    odd = table[:30] + struct.pack("<H", len(extra)) + table[32 : 46 + name_length] + extra + table[46 + name_length :]
    yield put(
        "a malformed extra field",
        small[:offset] + odd + small[end : end + 12] + struct.pack("<I", len(odd)) + small[end + 16 :],
        "extra field",
    )
    for what, where, value, says in (
        ("version 9.9", 6, b"\x63\x00", "9.9"),
        ("an encrypted member", 8, b"\x01\x00", "encrypted"),
        ("a rare method", 10, b"\x0e\x00", "rare"),
        ("two sizes", 24, struct.pack("<I", 1), "two sizes"),
        ("a directory that points elsewhere", 42, struct.pack("<I", 7), ""),
        ("sizes in a field that is missing", 24, b"\xff\xff\xff\xff", ""),
    ):
        changed = bytearray(small)
        changed[offset + where : offset + where + len(value)] = value
        yield put(what, bytes(changed), says)
    renamed = bytearray(small)
    renamed[30 : 30 + 5] = b"evil/"
    yield put("a local header that disagrees", bytes(renamed), "not what the directory says")
    twice = small.replace(b"byteorder", b"data.pkl\0")
    yield put("a name with a null", twice, "")
    with zipfile.ZipFile(folder / "same.pt", "w") as out:
        out.writestr("model/data.pkl", b"\x80\x02}.")
        out.writestr("model/data.pkX", b"\x80\x02}.")
    yield put(
        "two members of one name", (folder / "same.pt").read_bytes().replace(b"data.pkX", b"data.pkl"), "two of its members"
    )
    entries = b"".join(table[: 46 + name_length] for _ in range(3))
    yield put(
        "overlapping members",
        small[:offset] + entries + small[end : end + 8] + struct.pack("<HHII", 3, 3, len(entries), offset) + small[-2:],
        "",
    )
    yield put("a number of members that is not true", small[: end + 8] + struct.pack("<HH", 2, 2) + small[end + 12 :], "")
    wide = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1 << 60, 1 << 60, size, offset)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1)
    yield put("a second end record that disagrees", small[:end] + wide + locator + small[end:], "differ")
    yield put("two roots", (lambda p: p.read_bytes())(_two_roots(folder / "roots.pt")), "not one that torch.save wrote")
    (folder / "hole.pt").touch()
    os.truncate(folder / "hole.pt", 100 << 30)
    yield "a file of holes", folder / "hole.pt", ""


def _two_roots(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for root in "ab":
            out.writestr(f"{root}/data.pkl", b"\x80\x02}.")
    return path


# arrays


def npy(header: str, data: bytes = b"") -> bytes:
    line = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line + data


def safetensors(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    line = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(line) if size is None else size) + line + data


def arrays(folder: Path) -> Iterator[Case]:
    def pack(name: str, **members: bytes) -> Path:
        path = folder / f"{name.replace(' ', '_')}.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for member, data in members.items():
                out.writestr(f"{member}.npy", data)
        return path

    good = npy("{'descr': '<i8', 'fortran_order': False, 'shape': (2,)}", bytes(16))
    for name, header, says in (
        ("a huge shape", "{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776, 8)}", "another size"),
        ("a shape that overflows", "{'descr': '<i8', 'fortran_order': False, 'shape': (4294967296, 4294967296, 2)}", "shape"),
        ("a negative shape", "{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}", ""),
        ("an array of objects", "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "allow_pickle"),
        ("a deep header", "(" * 5000 + ")" * 5000, ""),
        ("a header that is code", "__import__('os').mkdir('marker')", ""),
        ("a number of 5000 digits", "{'descr': '<i8', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}", ""),
        ("a type with fields", "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}", ""),
    ):
        yield name, pack(name, x=npy(header, bytes(8)), y=good), says
    path = folder / "bomb.npz"
    np.savez_compressed(path, x=np.zeros((400 << 20) // 8), y=np.zeros(4))
    nested = folder / "nested.npz"
    with zipfile.ZipFile(nested, "w", zipfile.ZIP_DEFLATED) as out:
        out.write(path, "x.npy")
        out.writestr("y.npy", good)
    yield "an npz bomb", path, "unpacks to"
    yield "an archive in an archive", nested, "header"
    broken = bytearray(
        pack("checksum", x=npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 4)}", bytes(64)), y=good).read_bytes()
    )
    at = broken.find(b"PK\x01\x02")
    broken[at + 16 : at + 20] = broken[14:18] = b"\1\2\3\4"
    (folder / "checksum.npz").write_bytes(broken)
    yield "a wrong checksum", folder / "checksum.npz", "checksum"
    f32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for name, data in (
        ("a header of 2^60 bytes", safetensors({"x": f32}, bytes(8), 1 << 60)),
        ("a header of 100 MB", safetensors(b"{" + b" " * (100 << 20) + b"}")),
        ("overlapping tensors", safetensors({"x": f32, "y": f32}, bytes(8))),
        ("a hole", safetensors({"x": f32, "y": {**f32, "data_offsets": [16, 24]}}, bytes(24))),
        ("tensors beyond the file", safetensors({"x": {**f32, "shape": [1 << 40], "data_offsets": [0, 4 << 40]}}, bytes(8))),
        ("a shape that is not its bytes", safetensors({"x": {**f32, "shape": [1 << 62, 4]}}, bytes(8))),
        ("many tensors", safetensors({f"{k}": {**f32, "shape": [0], "data_offsets": [0, 0]} for k in range(150_000)})),
        ("deep metadata", safetensors(b'{"__metadata__":' + b"[" * 200_000 + b"}")),
        (
            "one name twice",
            safetensors(b'{"x":' + json.dumps(f32).encode() + b',"x":' + json.dumps(f32).encode() + b"}", bytes(8)),
        ),
        ("nothing", b""),
        ("half a length", b"\1\2\3"),
    ):
        path = folder / f"{name.replace(' ', '_')}.safetensors"
        path.write_bytes(data)
        yield f"safetensors: {name}", path, ""
    lists = b"K\x00a" + b"".join(b"q%c0](" % (10 + k) + b"h%c" % (10 + k) * 10 + b"e" for k in range(18))
    yield (
        "lists of lists as rows",
        archive(folder / "lists.pt", b"\x80\x02}(" + text("x") + b"]" + lists + text("y") + b"]u."),
        "",
    )


# tables


def tables(folder: Path) -> Iterator[Case]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def put(name: str, data: bytes, suffix: str = "csv") -> Path:
        path = folder / f"{name.replace(' ', '_')}.{suffix}"
        path.write_bytes(data)
        return path

    yield "empty cells without end", put("commas", b"a,label\n" + b",\n" * 18_000_000), "cells"
    yield "no column names", put("no_names", b",\n" * 1000), "column names"
    yield "one enormous field", put("field", b"a,label\n" + b"x" * (40 << 20) + b",1\n"), "no regular CSV"
    yield "one enormous quoted field", put("quoted", b'a,label\n"' + b"x\n" * (20 << 20) + b'",1\n'), ""
    yield "a header of 20 MB", put("header", b"a" * (20 << 20) + b",label\n1,0\n"), ""
    yield "a column name of 5000 letters", put("name", b"a" * 5000 + b",label\n1,0\n2,1\n"), "longer than"
    yield "UTF-16", put("utf16", "a,label\n1,0\n2,1\n".encode("utf-16")), "UTF-8"
    yield "null bytes", put("null", b"a,label\n" + b"\0" * 1000), ""
    yield "20,000 columns", put("wide", b",".join(b"c%d" % k for k in range(20_000)) + b"\n"), "columns"
    side = pa.table({"a": pa.array([1.0] * 1_000_000), "label": pa.array([0, 1] * 500_000)})
    with pq.ParquetWriter(folder / "rows.parquet", side.schema, compression="zstd") as sink:
        for _ in range(60):
            sink.write_table(side)
    half = put("half", (folder / "rows.parquet").read_bytes()[:5000], "parquet")
    yield "equal rows without end", folder / "rows.parquet", "cells"
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), ["x" * (1 << 20)])
    pq.write_table(
        pa.table({"a": long, "label": [0, 1] * 1000}), folder / "long.parquet", compression="zstd", store_schema=False
    )
    yield "one long text in all rows", folder / "long.parquet", "unpacks to"
    kind = pa.int64()
    for _ in range(150):
        kind = pa.struct([("a", kind)])
    pq.ParquetWriter(folder / "deep.parquet", pa.schema([("a", kind), ("label", pa.int64())])).close()
    yield "a deep schema", folder / "deep.parquet", ""
    rows = pa.ListArray.from_arrays(np.arange(0, 20_000_001, 1000, np.int32), np.zeros(20_000_000))
    lists = pa.table({"a": rows, "label": [0, 1] * 10_000})
    pq.write_table(lists, folder / "lists.parquet", compression="zstd")
    yield "lists in rows", folder / "lists.parquet", ""
    pq.write_table(pa.table({"n" * 5000: [1.0, 2.0], "label": [0, 1]}), folder / "name.parquet")
    yield "a parquet column of 5000 letters", folder / "name.parquet", "longer than"
    yield "half a parquet file", half, "truncated or damaged"
    yield "a footer of 2 GB", put("footer", b"PAR1" + bytes(100) + struct.pack("<I", (1 << 31) - 1) + b"PAR1", "parquet"), ""


# pictures


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, rows: bytes | None = None) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    body = zlib.compress(rows if rows is not None else bytes((1 + width * depth // 8) * height), 1 if rows is None else 9)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in ((b"IHDR", head), *chunks, (b"IDAT", body), (b"IEND", b"")))


def pictures(folder: Path) -> Iterator[Case]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fine = png(8, 8)

    def put(name: str, *files: bytes) -> Path:
        for k, part in enumerate("ab"):
            (folder / name.replace(" ", "_") / part).mkdir(parents=True)
            for i in range(2):
                (folder / name.replace(" ", "_") / part / f"{i}.png").write_bytes(files[(2 * k + i) % len(files)])
        return folder / name.replace(" ", "_")

    yield "30000 x 30000 pixels", put("claims", fine, png(30_000, 30_000, rows=b"")), "bomb"
    yield "many large pictures", put("large", png(7900, 7900, depth=16)), "bomb"
    packed = zlib.compress(bytes(300 << 20), 9)
    yield "a giant color profile", put("profile", fine, png(8, 8, (b"iCCP", b"x\0\0" + packed))), ""
    yield "a giant text", put("text", fine, png(8, 8, (b"zTXt", b"x\0\0" + packed))), "readable picture"
    yield "half a picture", put("half", fine, png(64, 64)[:60]), "truncated or damaged"
    pipe = put("pipe", fine)
    os.mkfifo(pipe / "a" / "2.png")
    yield "a pipe among the pictures", pipe, "pipe"
    device = put("device", fine)
    (device / "a" / "2.png").symlink_to("/dev/zero")
    yield "a link to a device", device, "device"
    loop = put("loop", fine)
    (loop / "a" / "2.png").symlink_to(loop / "a" / "3.png")
    (loop / "a" / "3.png").symlink_to(loop / "a" / "2.png")
    yield "links in a circle", loop, ""
    name = put("control", fine)
    (name / "a").rename(name / "a\x1b[2J")
    yield "a class with escape codes", name, "no readable text"
    heavy_one = png(1, 1, (b"zzZz", bytes(8 << 20)))
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array([heavy_one]))
    column = pa.StructArray.from_arrays([same, pa.array(["a"] * 500)], ["bytes", "path"])
    image = pa.table({"image": column, "label": [0, 1] * 250})
    pq.write_table(image, folder / "one.parquet", compression="zstd", store_schema=False)
    yield "one heavy picture in many rows", folder / "one.parquet", "bytes in files of"
    side = pa.array([{"bytes": png(600, 600), "path": "a"}] * 2048)
    pq.write_table(pa.table({"image": side, "label": [0, 1] * 1024}), folder / "rows.parquet", compression="zstd")
    yield "one picture in many rows", folder / "rows.parquet", "at most"


# records


def records(folder: Path) -> Iterator[Case]:
    """Run folders; ``base`` is a finished one, made by the caller."""
    base = folder / "base"
    whole = json.loads((base / "run.json").read_text())

    def copy(name: str) -> Path:
        path = folder / name.replace(" ", "_")
        path.mkdir()
        for file in base.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        return path

    def change(name: str, where: str, value: object) -> Path:
        path, record = copy(name), json.loads(json.dumps(whole))
        *inner, last = where.split(".")
        at = record
        for key in inner:
            at = at.setdefault(key, {})
        at[last] = value
        (path / "run.json").write_text(json.dumps(record))
        return path

    for file in ("model.safetensors", "run.json", "events.jsonl", "planted.json"):
        path = copy(f"pipe {file}")
        (path / file).unlink(missing_ok=True)
        os.mkfifo(path / file)
        yield f"{file} is a pipe", path, ""
        path = copy(f"device {file}")
        (path / file).unlink(missing_ok=True)
        (path / file).symlink_to("/dev/zero")
        yield f"{file} is a link to /dev/zero", path, ""
    path = copy("socket")
    (path / "model.safetensors").unlink()
    short_path = Path(os.path.relpath(path / "model.safetensors"))
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(short_path) if len(str(short_path)) < 100 else str(_link(folder, path) / "model.safetensors"))
    yield "a socket", path, "socket"
    path = copy("events")
    line = '{"event":"train","epoch":1,"loss":' + "9" * 4000 + ',"accuracy":1}\n'
    (path / "events.jsonl").write_text("[" * 200_000 + "\n" + line + '{"event":"train","epoch":1e999,"seconds":NaN}\n')
    yield "deep events", path, "ANY"
    for name, data in (
        ("deep", b"[" * 100_000),
        ("digits", b'{"format": ' + b"1" * 5000 + b"}"),
        ("not a number", b'{"format": NaN}'),
        ("many values", b"[" + b"[]," * 9_000_000 + b"0]"),
        ("utf16", '{"format": 1}'.encode("utf-16")),
        ("a name twice", b'{"format": 1, "format": 1, "model": {}, "card": {}}'),
        ("half a character", b'{"format": 1, "model": {"architecture": "\\ud800", "options": {}}, "card": {}}'),
    ):
        path = copy(f"json {name}")
        (path / "run.json").write_bytes(data)
        yield f"run.json: {name}", path, ""
    long = "x" * 5000
    for k, (where, value) in enumerate(
        [
            ("card.size", [30_000, 30_000]),
            ("card.size", [-5, -5]),
            ("card.classes", ["a"] * 300_000),
            ("card.name", long),
            ("groups", 5),
            ("notes", 5),
            ("notes", [[[]]]),
            ("data", 5),
            ("data.source.options", {"size": 2048}),
            ("data.source.options", {"size": [4096, 4096]}),
            ("data.source.options", {"memory_budget": 1 << 70}),
            ("data.source.options", {"seed": 1 << 80}),
            ("data.source.name", "~nosuch/x"),
            ("data.source.name", long),
            ("data.source.name", "/dev/zero"),
            ("data.source.name", "a\0b"),
            ("data.rows", {"train": -1}),
            ("data.rows", {"train": "many"}),
            ("parent", {"folder": "~nosuch/x"}),
            ("parent", {"folder": long, "weights": 5, "name": long}),
            ("kind", "repair"),
            ("kind", "debias"),
            ("kind", [1]),
            ("attack", {"method": long}),
            ("attack", 7),
            ("evaluation", {"acc": 1}),
            ("provenance", {"command": long, "seconds": 10**39, "seed": 10**39}),
            ("provenance", {"seconds": -1}),
            ("provenance", 3),
            ("recipe", [5]),
            ("recipe", {"name": long}),
            ("poison", {"rows": long}),
            ("model.options", {"width": 1 << 40}),
            ("model.architecture", "\x1b[2J"),
            ("weights", {"layout": 5}),
            ("defense", {"method": long}),
            ("training", {"method": long}),
            ("identity", {"precision": [1]}),
        ]
    ):
        yield f"{where} = {str(value)[:40]}", change(f"field {k}", where, value), "ANY"
    path = copy("folder \x1b[2J\x1b]0;x\x07")
    yield "a folder's name with escape codes", path, "OK"


def _link(folder: Path, path: Path) -> Path:
    short_name = Path("/tmp") / f"link-{os.getpid()}"
    short_name.symlink_to(path)
    return short_name


# opening them


def opened(path: Path) -> str:
    """What a user is told who opens a file in the usual way; LOADED if nothing is refused."""
    import torch

    import theriac as th
    from theriac.core.errors import InputError
    from theriac.core.files import load_tensors_safely

    try:
        if path.suffix in (".pt", ".pth") and path.stem != "lists":
            try:
                if "many" not in path.name:
                    th.load_weights(torch.nn.Linear(2, 2), path, tensors_only=True)  # leaves strangers out, runs nothing either
            except InputError as error:
                _check(str(error))
            load_tensors_safely(path)
        else:
            th.load(path, **({"size": 8} if path.name == "large" else {}))
    except InputError as error:
        return f"{type(error).__name__}: {error}"
    return "LOADED"


def reported(path: Path) -> str:
    """What ``theriac report`` and ``theriac eval`` say of a folder, with their exit codes."""
    import contextlib

    from theriac.cli.main import app

    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        codes = [app([verb, str(path)], standalone_mode=False) or 0 for verb in ("report", "eval")]
    said = told.getvalue()
    if "\x1b[2J" in said or "\x07" in said:
        said += " ESCAPE CODES"
    return f"{'OK' if not any(codes) else 'REFUSED' if set(codes) <= {0, 2} else 'FAILED'} {codes} {said[-1500:]}"


def _check(told: str) -> None:
    assert "\n" not in told, told
    assert len(told) < 1200, told
    assert not any(word in told for word in ("weights_only", "add_safe_globals", "safe_globals", "\x1b")), told


GROUPS: dict[str, Callable[[Path], Iterator[Case]]] = {
    f.__name__: f for f in (pickles, archives, arrays, tables, pictures, records)
}


def peak() -> int:
    """Most memory of this program so far, in MB. What getrusage says begins with that of the process which started it."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return next(int(line.split()[1]) >> 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def main(group: str, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    open_one = reported if group == "records" else opened
    open_one(folder / "base")  # so that imports, which take seconds on a slow machine, are not counted with the first file
    for name, path, says in GROUPS[group](folder):
        began, before = time.monotonic(), peak()
        try:
            told = open_one(path)
        except BaseException as error:
            told = f"CRASHED {type(error).__name__}: {error}"
        line = {"name": name, "says": says, "told": told, "seconds": round(time.monotonic() - began, 2), "before": before}
        print(json.dumps(line | {"mb": peak()}), flush=True)
        if path.is_file():
            path.unlink()
    assert not (folder / "marker").exists()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
