"""Arrays and tensors, handed in or read from .npz, .pt and .safetensors files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from theriac.core.card import Augment, Card, Column
from theriac.core.errors import InputError
from theriac.core.files import is_plain, load_tensors_safely, read_npz, read_safetensors, refuse_bomb, shown
from theriac.core.ranges import Positive, Seed, typed
from theriac.core.split import Data
from theriac.data._assemble import assemble
from theriac.data._fairness_input import aligned
from theriac.data._images import recolor, rescale
from theriac.data._known import known, policy
from theriac.data._labels import ROWS, Codes, Factor, arrange, cells_of, classes_of, warn_twins
from theriac.data._options import Options

MAX_BYTES = 64 << 30  # of all arrays of a file, uncompressed
X = ("x", "images", "data")
Y = ("y", "labels", "label", "targets")
GROUP = ("group", "groups")


@typed("test")
def from_tensors(
    x: Any,
    y: Any,
    *,
    group: Any = None,
    test: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    missing_group: str = "refuse",
    columns: Sequence[Column] | None = None,
    augment: Augment | None = None,
    val_share: float = 0.0,
    test_share: float = 0.2,
    seed: Seed = 0,
    white: Positive | None = None,
    name: str = "tensors",
) -> Data:
    """Make splits of tensors or NumPy arrays.

    Args:
        x: Images, (N, C, H, W), (N, H, W, C) or gray (N, H, W): integers in [0, 255], or floats in [0, 1] that are multiples
            of 1/255 and so become bytes without loss; other numbers need ``white``. Or a table, (N, F), NaN where missing.
        y: Labels, (N,) or (N, 1): whole numbers or text.
        group: Sensitive group of each row, (N,), or None.
        test: Test rows, ``(x, y)`` or ``(x, y, group)``; without them, a stratified share of the rows is held out.
        classes: Names of classes 0, 1, ...; by default the labels themselves.
        groups: Names of groups 0, 1, ...
        missing_group: What becomes of rows without a group: "refuse", or "own" for a group "missing".
        columns: What the columns of a table are; by default those of a data frame, else numbers called f0, f1, ...
        augment: How training images may be changed; by default cropped, and flipped only if ``name`` is a data set that is
            known to allow it.
        val_share: Share of the training rows to hold out for validation.
        test_share: Share to hold out for testing where ``test`` is None.
        seed: Seed of these draws.
        white: Number that means white in images on another scale, such as 16 for scikit-learn's digits; 0 is black, and what
            lies between is rounded to 255 levels.
        name: Name for the card.

    Raises:
        InputError: On a wrong shape, type, range or length, naming what came.

    Examples:
        >>> import theriac as th
        >>> digits = th.load("digits")
        >>> data = th.data.from_tensors(digits.train.x.float() / 255, digits.train.y, name="mine")
        >>> data.train
        Split('mine', 1150 rows of (1, 8, 8), 10 classes)
    """
    arrays: dict[str, Any] = {"x_train": x, "y_train": y, "group_train": group}
    if test is not None:
        if not isinstance(test, Sequence) or len(test) not in (2, 3):
            raise InputError(f"test is a {type(test).__name__}; expected (x, y) or (x, y, group)")
        arrays |= dict(zip(("x_test", "y_test", "group_test"), test, strict=False))
    arrays = {key: value for key, value in arrays.items() if value is not None}
    keep = dict.fromkeys(("test", "label", "sensitive", "size", "channels", "categorical", "drop"))
    options = Options.of(
        **keep,
        missing_group=missing_group,
        augment=augment,
        val_share=val_share,
        test_share=test_share,
        seed=seed,
        memory_budget=1,
        white=white,
        name=name,
    )
    data = array_data(arrays, None, name, options, "", classes=classes, cells=groups, columns=columns)
    warn_twins(data.card)
    return data


def array_data(
    source: Any,
    test: Any,
    name: str,
    options: Options,
    origin: str,
    *,
    classes: Sequence[str] | None = None,
    cells: Sequence[str] | None = None,
    columns: Sequence[Column] | None = None,
) -> Data:
    """Make the splits of ``(x, y)``, ``(x, y, group)`` or a mapping with names such as ``x_train``.

    Raises:
        InputError: On missing names, or a wrong shape, type or range.
    """
    options.refuse("arrays have no named columns", "label", "sensitive", "categorical", "drop", "missing")
    parts = _parts(source, "source")
    if test is not None:
        parts["test"] = _parts(test, "test")["train"]
    columns = _unframed(parts, columns)
    x = {part: _rows(f"{ROWS[part]} x", values["x"], options.white) for part, values in parts.items()}
    factors = {part: _factor(f"{ROWS[part]} y", values["y"], len(x[part])) for part, values in parts.items()}
    labels, shown = classes_of("y", factors, classes)
    groups: dict[str, Codes] | None = None
    named: tuple[str, ...] = ()
    if any("group" in values for values in parts.values()):
        lacking = [ROWS[part] for part, values in parts.items() if "group" not in values]
        if lacking:
            raise InputError(f"group is missing for the {lacking[0]} rows; give it for all parts or for none")
        groups_by_part = {p: _factor(f"{ROWS[p]} group", v["group"], len(x[p])) for p, v in parts.items()}
        groups, named = cells_of({"group": groups_by_part}, {} if cells is None else {"group": cells}, options.missing_group)
    for part, value in x.items():
        if value.dim() == 4:
            value = rescale(value, options.size) if options.size else value
            x[part] = recolor(value, options.channels) if options.channels else value
        if x[part].shape[1:] != x["train"].shape[1:]:
            raise InputError(
                f"{ROWS[part]} x has rows of shape {tuple(x[part].shape[1:])}; training rows have {tuple(x['train'].shape[1:])}"
            )
    shape = x["train"].shape
    about: dict[str, Any] = {
        "name": options.name or name,
        "classes": shown,
        "groups": named,
        "source": origin or "arrays",
        "license": known(name).license,
    }
    if len(shape) == 2:
        options.refuse("these arrays are a table, not images", "size", "channels", "augment", "white")
        card = Card(kind="table", columns=_columns(columns, shape[1]), **about)
    else:
        size = (int(shape[2]), int(shape[3]))
        card = Card(channels=int(shape[1]), size=size, augment=policy(name, size, options.augment), **about)
    rows = arrange(labels, options.test_share, options.val_share, options.seed)

    def pick(part: str, at: Codes | None) -> torch.Tensor:
        return x[part] if at is None else x[part][torch.from_numpy(at).to(x[part].device)]

    return assemble(rows, labels, groups, pick, card, white=options.white)


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a file by name; nothing in it is run.

    Raises:
        InputError: If it is damaged, too large or not of its kind.
        UnsafeFileError: If opening it would run code.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return read_npz(path, lambda name: _meaning(name) is not None, MAX_BYTES, refuse_bomb)
    if suffix == ".safetensors":
        return dict(read_safetensors(path))
    tensors = load_tensors_safely(path)
    if isinstance(tensors, (tuple, list)) and len(tensors) in (2, 3):
        tensors = dict(zip(("x", "y", "group"), tensors, strict=False))
    if not isinstance(tensors, Mapping):
        raise InputError(f"{shown(path)} holds a {type(tensors).__name__}; expected tensors x and y")
    for key, value in tensors.items():
        if _meaning(str(key)) is not None and not _is_flat(value):
            raise InputError(f"{shown(path)} holds a {type(value).__name__} as {str(key)!r}; expected a tensor or an array")
    return dict(tensors)


def _is_flat(value: Any) -> bool:
    """Whether something from a file is an array, or a list of numbers or names; walking nested lists may never end."""
    if isinstance(value, (list, tuple)):
        return all(isinstance(v, (str, int, float)) for v in value)
    return value is None or isinstance(value, (torch.Tensor, np.ndarray))


def _meaning(key: str) -> tuple[str, str] | None:
    """("train", "x") for "x", "X_train", "train_images", and so on; None for other names."""
    words = [w for w in key.lower().replace("-", "_").split("_") if w]
    part = next((p for p in ROWS if p in words), "train")
    rest = [w for w in words if w != part]
    for role, names in (("x", X), ("y", Y), ("group", GROUP)):
        if len(rest) == 1 and rest[0] in names:
            return part, role
    return None


def _parts(source: Any, what: str) -> dict[str, dict[str, Any]]:
    if isinstance(source, (tuple, list)) and len(source) in (2, 3):
        source = dict(zip(("x", "y", "group"), source, strict=False))
    if not isinstance(source, Mapping):
        raise InputError(f"{what} is a {type(source).__name__}; expected a name, a path, (x, y) or a mapping of arrays")
    parts: dict[str, dict[str, Any]] = {}
    for key, value in source.items():
        meaning = _meaning(str(key))
        if meaning is not None and value is not None:
            if meaning[1] in parts.get(meaning[0], {}):
                raise InputError(f"{what} names the {ROWS[meaning[0]]} {meaning[1]} twice (such as {key!r})")
            parts.setdefault(meaning[0], {})[meaning[1]] = value
    for part in ("train", *parts):
        for role in ("x", "y"):
            if role not in parts.get(part, {}):
                raise InputError(
                    f"{what} lacks the {ROWS[part]} {role}; expected x and y, or x_train, y_train, x_test and y_test; "
                    f"got {', '.join(map(str, source)) or 'nothing'}"
                )
    return {part: parts[part] for part in ROWS if part in parts}


def _unframed(parts: dict[str, dict[str, Any]], columns: Sequence[Column] | None) -> Sequence[Column] | None:
    """Make arrays of data frames: columns by name, labels and groups by index; and what the columns are, if a frame says so."""
    for part, values in parts.items():
        frame = values["x"]
        if not hasattr(frame, "columns"):
            continue
        from theriac.data._frame import as_table, columns_of, matrix  # Arrow is loaded for frames alone

        table = as_table(frame)
        if table is None:
            continue
        if part == "train" and columns is None:
            columns = columns_of(table)
        values["x"] = matrix(table, columns)
        for role in ("y", "group"):
            if role in values:
                values[role] = aligned(values[role], frame, f"{ROWS[part]} {role}", f"{ROWS[part]} x")
    return columns


def _rows(what: str, value: Any, white: float | None) -> torch.Tensor:
    x = _tensor(what, value)
    if x.dim() == 2:
        if x.is_complex():
            raise InputError(f"{what} is {x.dtype}; table rows are real numbers")
        _warn_merged(what, x)
        return x.to(torch.float32)
    if x.dim() == 3:
        x = x[:, None]
    if x.dim() != 4:
        raise InputError(f"{what} has shape {tuple(x.shape)}; expected images (N, C, H, W) or a table (N, F)")
    if x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = x.permute(0, 3, 1, 2)
    if x.shape[1] not in (1, 3):
        raise InputError(f"{what} has shape {tuple(x.shape)}; images have 1 or 3 channels")
    return (x if x.dtype == torch.uint8 and white is None else _bytes(what, x, white)).contiguous()


def _warn_merged(what: str, x: torch.Tensor) -> None:
    """Warn of columns with large numbers of which float32 can't tell most apart; see the same for files of tables."""
    if x.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.bool):
        return
    for i in torch.nonzero((x.abs() >= 2**24).any(0)).flatten().tolist():  # below, float32 holds every whole number
        column = x[:, i]
        column = column[~column.isnan()] if column.is_floating_point() else column
        before, left = len(column.unique()), len(column.float().unique())
        if 2 * left <= before:
            warnings.warn(
                f"column {i} of {what} has {before:,} different numbers, of which float32 tells {left:,} apart; subtract a "
                "start value, or leave it out",
                stacklevel=5,
            )


def _bytes(what: str, x: torch.Tensor, white: float | None) -> torch.Tensor:
    if x.is_complex() or x.dtype == torch.bool:
        hint = "; 255 * x makes bytes of it" if x.dtype == torch.bool else ""
        raise InputError(f"{what} is {x.dtype}; images are uint8 in [0, 255]{hint}")
    out = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    for start in range(0, len(x), 4096):
        chunk = x[start : start + 4096]
        if white is not None:
            scaled = chunk.double() / (white / 255)
            good = scaled.min().item() >= 0 and scaled.max().item() <= 255  # false for NaN
            hint = f"with white={white:g}, images hold numbers from 0 (black) to {white:g} (white)"
        elif x.is_floating_point():
            scaled = chunk.double() * 255
            exact = bool(((scaled - scaled.round()).abs() <= 0.01).all())  # false for NaN
            good = exact and scaled.min().item() > -0.01 and scaled.max().item() < 255.01
            hint = "floats must be multiples of 1/255 in [0, 1]; otherwise scale to bytes, or say white=NUMBER"
        else:
            scaled = chunk.double()
            good = scaled.min().item() >= 0 and scaled.max().item() <= 255
            hint = "images are whole numbers in [0, 255]; for another scale say white=NUMBER"
        if not good and chunk.is_floating_point() and not bool(chunk.isfinite().all()):
            row = start + int((~chunk.isfinite()).flatten(1).any(1).nonzero()[0])
            raise InputError(f"{what} holds NaN or infinite values, the first in row {row}; expected pixels")
        if not good:
            low, high = chunk.double().min().item(), chunk.double().max().item()
            raise InputError(f"{what} is {x.dtype} with values from {low:.6g} to {high:.6g}; {hint}")
        out[start : start + 4096] = scaled.round().to(torch.uint8)
    return out


def _refuse_masked(what: str, value: Any) -> None:
    """Refuse an array that hides some of its numbers, which would come back from behind the mask."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise InputError(
            f"{what} masks {np.ma.count_masked(value):,} of {value.size:,} entries; fill them first (in a table with NaN)"
        )


def _tensor(what: str, value: Any) -> torch.Tensor:
    _refuse_masked(what, value)
    if isinstance(value, torch.Tensor):
        if not is_plain(value):
            raise InputError(f"{what} is a sparse, quantized or nested tensor, or one without data; expected a plain one")
        tensor = value.detach().clone()  # what its owner does with it later must not change rows whose hash is known
    else:
        try:
            array = np.asarray(value)
            array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
            shared = isinstance(value, np.ndarray) and np.may_share_memory(array, value)
            tensor = torch.from_numpy(array.copy() if shared or not array.flags.writeable else array)  # a split never changes
        except (TypeError, ValueError) as error:
            raise InputError(f"{what} is not an array of numbers ({str(error)[:120]})") from None
    if not tensor.numel() or not tensor.dim():
        raise InputError(f"{what} has shape {tuple(tensor.shape)}; a split needs at least one row that holds something")
    return tensor


def _factor(what: str, value: Any, rows: int) -> Factor:
    _refuse_masked(what, value)
    try:
        array = _tensor(what, value).cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    except (TypeError, ValueError) as error:  # bfloat16, or lists of different lengths
        raise InputError(f"{what} is not an array of numbers or text ({str(error)[:120]})") from None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != (rows,):
        raise InputError(f"{what} has shape {array.shape}; expected ({rows},), one entry for each row")
    if array.dtype.kind not in "iufbUO":
        raise InputError(f"{what} is {array.dtype}; expected whole numbers or text")
    return Factor.of(array)


def _columns(declared: Sequence[Column] | None, width: int) -> tuple[Column, ...]:
    columns = tuple(Column(name=f"f{i}") for i in range(width)) if declared is None else tuple(declared)
    if len(columns) != width:
        raise InputError(f"columns describes {len(columns)} columns; x has {width}")
    return columns
