"""DwB behind scikit-learn's interface: ``fit(X, y, sensitive_features=...)``, then ``predict`` without any group."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from theriac.core import check
from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.debias.dwb import DwB
from theriac.models import Builder

Floats = npt.NDArray[np.float32]
_ROWS = 4096  # per forward pass of a prediction


class DwBClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier for tables whose decisions depend less on a sensitive attribute; it needs the attribute for ``fit`` only.

    A network learns from a teacher with a planted artificial bias (:class:`theriac.debias.DwB`). X may be an array of numbers
    with NaN for missing values, or a data frame, whose columns of text become categories. Labels and groups may be of any type.

    Args:
        rule: "exact" (two groups, two classes), "multi" (any number), "closed" (as released; shifts both groups' class shares
            by a common constant), or "auto": "exact" where it applies, else "multi".
        strength: 0 leaves the bias, 1 is the method, more over-corrects.
        hidden: Widths of the hidden layers.
        teacher_epochs: Passes over the rows.
        student_epochs: Likewise.
        min_steps: Optimizer steps that the student takes at least, and the teacher half of it: small sets need more passes.
        batch_size: Rows per step.
        lr: Of Adam.
        soft: Weight of the teacher's answers.
        hard: Weight of the labels.
        temperature: Of the teacher's answers.
        device: "auto", "cpu" or "cuda".
        random_state: Seed, generator or None.

    Attributes:
        classes_: Labels, sorted.
        groups_: Sensitive groups, sorted, as text where several columns or types were mixed.
        model_: The network: raw rows (N, F) to logits.
        card_: What the columns are; ``theriac.Split(x, y, card=card_)`` makes rows for :func:`theriac.fairness`.

    Example:
        >>> import numpy as np
        >>> draw = np.random.default_rng(0)
        >>> sex = draw.choice(["f", "m"], 400)
        >>> X = np.column_stack([draw.normal(size=400), sex == "m"])
        >>> y = np.where(X[:, 0] + 2 * X[:, 1] + draw.normal(size=400) > 1, "yes", "no")
        >>> fair = DwBClassifier(hidden=(16,), random_state=0).fit(X, y, sensitive_features=sex)
        >>> fair.predict(X[:2]).shape, fair.classes_.tolist()
        ((2,), ['no', 'yes'])
    """

    def __init__(
        self,
        *,
        rule: str = "auto",
        strength: float = 1.0,
        hidden: Sequence[int] = (128, 256, 512),
        teacher_epochs: int = 5,
        student_epochs: int = 10,
        min_steps: int = 300,
        batch_size: int = 256,
        lr: float = 1e-3,
        soft: float = 0.9,
        hard: float = 0.1,
        temperature: float = 1.0,
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.rule = rule
        self.strength = strength
        self.hidden = hidden
        self.teacher_epochs = teacher_epochs
        self.student_epochs = student_epochs
        self.min_steps = min_steps
        self.batch_size = batch_size
        self.lr = lr
        self.soft = soft
        self.hard = hard
        self.temperature = temperature
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any, *, sensitive_features: Any = None) -> Self:  # noqa: N803
        """Train on rows X (N, F), labels y (N,) and the sensitive group of each row: (N,), or (N, S) columns that combine.

        Raises:
            InputError: Without ``sensitive_features``, or if a cell of group and label has no row.
        """
        check.whole("min_steps", self.min_steps, 0)
        x, columns = self._rows(X, fit=True)
        y = column_or_1d(y, warn=True)
        check_consistent_length(x, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"y holds one class only, {self.classes_[0]!r}; a classifier needs at least two")
        if sensitive_features is None:
            raise InputError("sensitive_features is missing; it gives the sensitive group of each row of X")
        cells = _cells(sensitive_features)
        check_consistent_length(x, cells)
        self.groups_, groups = np.unique(cells, return_inverse=True)
        self.card_ = Card(
            kind="table",
            classes=tuple(str(k) for k in self.classes_),
            groups=tuple(str(g) for g in self.groups_),
            columns=columns,
        )
        split = Split(torch.from_numpy(x), torch.from_numpy(labels), group=torch.from_numpy(groups), card=self.card_)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        run = Run(seed=seed, device=self.device, precision="fp32")
        build = Builder("mlp", {"hidden": tuple(self.hidden)})
        self.model_ = self._method(len(x)).fit(build, split, run).cpu()
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:  # noqa: N803
        """Class probabilities (N, K), in the order of ``classes_``."""
        check_is_fitted(self)
        x = torch.from_numpy(self._rows(X, fit=False)[0])
        exact = copy.deepcopy(self.model_).double()  # so that a row's answer does not depend on the rows beside it
        with torch.inference_mode():
            parts = [exact(rows.double()).softmax(1) for rows in x.split(_ROWS)]
        found: npt.NDArray[np.float64] = torch.cat(parts).numpy()
        return found

    def predict(self, X: Any) -> npt.NDArray[Any]:  # noqa: N803
        """The most probable label of each row, (N,)."""
        check_is_fitted(self)
        chosen: npt.NDArray[Any] = self.classes_[self.predict_proba(X).argmax(1)]
        return chosen

    def _method(self, rows: int) -> DwB:
        check.one_of("rule", self.rule, ("auto", "exact", "closed", "multi"))
        binary = len(self.classes_) == len(self.groups_) == 2
        per_epoch = -(-rows // min(self.batch_size, rows)) if self.batch_size else 1
        options = {
            "rule": ("exact" if binary else "multi") if self.rule == "auto" else self.rule,
            "teacher_steps": max(self.teacher_epochs * per_epoch, self.min_steps // 2),
            "student_steps": max(self.student_epochs * per_epoch, self.min_steps),
        }
        for name in ("strength", "teacher_epochs", "student_epochs", "batch_size", "lr", "soft", "hard", "temperature"):
            options[name] = getattr(self, name)
        return DwB.from_config(options)

    def _rows(self, X: Any, *, fit: bool) -> tuple[Floats, tuple[Column, ...]]:  # noqa: N803
        """Rows as float32 (N, F), and what the columns are; a frame's text becomes codes, fitted once."""
        coded: Mapping[str, tuple[str, ...]] = {} if fit else getattr(self, "categories_", {})
        if hasattr(X, "columns") and hasattr(X, "iloc"):
            if fit:
                texts = [c for c in X.columns if np.asarray(X[c]).dtype.kind not in "biuf"]
                coded = {c: tuple(sorted({str(v) for v in X[c].dropna()})) for c in texts}
            if coded and set(coded) <= set(X.columns):
                X = X.assign(**{c: _codes(X[c], levels) for c, levels in coded.items()})  # noqa: N806
        if fit:
            self.categories_: dict[str, tuple[str, ...]] = dict(coded)
        x = validate_data(self, X, reset=fit, dtype=np.float64, ensure_all_finite="allow-nan")
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        if np.isinf(x).any():
            raise InputError("X holds numbers beyond float32; scale the column")
        names = [str(n) for n in getattr(self, "feature_names_in_", range(x.shape[1]))]
        columns = [Column(name=n, kind="categorical", categories=coded[n]) if coded.get(n) else Column(name=n) for n in names]
        return x, tuple(columns)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def _codes(column: Any, levels: Sequence[str]) -> npt.NDArray[np.float64]:
    """Text as codes into ``levels``; missing values and text never seen become NaN."""
    place = {level: i for i, level in enumerate(levels)}
    known = column.isna().to_numpy()
    found, back = np.unique(np.asarray(column.astype(str), dtype=object).astype(str), return_inverse=True)
    codes = np.array([place.get(v, np.nan) for v in found.tolist()], dtype=np.float64)[back]
    return np.where(known, np.nan, codes)


def _cells(given: Any) -> npt.NDArray[Any]:
    """One value a row; several columns combine into text."""
    values = np.asarray(given)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2 and values.shape[1]:
        return np.array([" & ".join(map(str, row)) for row in values.tolist()])
    if values.ndim != 1:
        raise InputError(f"sensitive_features has shape {values.shape}; expected (N,) or (N, columns)")
    return values.astype(str) if values.dtype == object else values
