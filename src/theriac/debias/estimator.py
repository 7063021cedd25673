"""DwB behind scikit-learn's interface: ``fit(X, y, sensitive_features=...)``, then ``predict`` without any group."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from theriac.core import check
from theriac.core.card import Card, Column
from theriac.core.errors import InputError, shortened
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.data._fairness_input import aligned, as_cells, has_index, labeled, refuse_apart
from theriac.data._frame import as_table, columns_of, matrix
from theriac.debias.dwb import DwB
from theriac.models import Builder

Floats = npt.NDArray[np.float32]
_ROWS = 4096  # per forward pass of a prediction
_OPTIONS = (  # that go to DwB as they are
    "strength", "teacher_epochs", "student_epochs", "min_steps", "batch_size", "lr", "soft", "hard", "temperature",
)  # fmt: skip


class DwBClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier for tables whose decisions depend less on a sensitive attribute; it needs the attribute for ``fit`` only.

    A network learns from a teacher with a planted artificial bias (:class:`theriac.debias.DwB`, whose defaults these are). X
    may be an array of numbers with NaN for missing values, or a data frame of pandas, polars or pyarrow, whose columns count
    by their types: numbers and booleans are numeric, text and categories (of numbers too) are categories, and dates and other
    types are refused. Labels and groups may be of any type. pandas objects are matched by their index.

    Args:
        rule: "exact" (two groups, two classes), "multi" (any number), "closed" (as released; shifts both groups' class shares
            by a common constant), or "auto": "exact" where it applies, else "multi".
        strength: 0 leaves the bias, 1 is the method, more over-corrects.
        hidden: Widths of the hidden layers.
        teacher_epochs: Passes over the rows.
        student_epochs: Likewise.
        min_steps: Optimizer steps that the student takes at least, and the teacher half of it: small sets need more passes.
        missing_group: What becomes of rows without a sensitive group: "refuse", or "own" for a group "missing".
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

    Examples:
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
        missing_group: str = "refuse",
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
        self.missing_group = missing_group
        self.batch_size = batch_size
        self.lr = lr
        self.soft = soft
        self.hard = hard
        self.temperature = temperature
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any, *, sensitive_features: Any = None) -> Self:  # noqa: N803
        """Train on rows X (N, F), labels y (N,) and the sensitive group of each row: (N,), or (N, S) columns that combine.

        Where X and one of the others come from pandas, rows are matched by their index.

        Raises:
            InputError: Without ``sensitive_features``, if one of them is missing (unless ``missing_group`` is "own"), if a cell
                of group and label has no row, or on a column of dates, of several types or of free text. An earlier fit then
                stays as it was.
        """
        before = dict(self.__dict__)
        try:
            return self._fit(X, y, sensitive_features)
        except BaseException:  # or new labels would name what the old network says
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _fit(self, X: Any, y: Any, sensitive_features: Any) -> Self:  # noqa: N803
        if isinstance(self.hidden, str) or not isinstance(self.hidden, (Sequence, np.ndarray)):
            raise InputError(f"hidden is {shortened(self.hidden)}; expected a width for each layer, such as (128, 256)")
        x, columns = self._rows(X, fit=True)
        if not has_index(X):  # then nothing says which of two orders that of the rows is
            refuse_apart({"y": y, "sensitive_features": sensitive_features})
        y = column_or_1d(aligned(y, X, "y", "X"), warn=True)
        check_consistent_length(x, y)
        _refuse_labels(y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"y holds one class only, {self.classes_.tolist()[0]!r}; a classifier needs at least two")
        if sensitive_features is None:
            raise InputError("sensitive_features is missing; it gives the sensitive group of each row of X")
        groups, levels = as_cells(
            aligned(sensitive_features, X, "sensitive_features", "X"), "sensitive_features", self.missing_group
        )
        check_consistent_length(x, groups)
        if len(levels) < 2:
            raise InputError(f"sensitive_features holds one group only, {levels[0]!r}; there is nothing to compare")
        same = len({type(level) for level in levels}) == 1
        self.groups_ = np.array(levels if same else [str(level) for level in levels])
        self.card_ = Card(
            kind="table",
            classes=tuple(str(k) for k in self.classes_),
            groups=tuple(str(level) for level in levels),
            columns=columns,
        )
        split = Split(torch.from_numpy(x), torch.from_numpy(labels), group=torch.from_numpy(groups), card=self.card_)
        seed = self._seed()
        run = Run(seed=seed, device=self.device, precision="fp32")
        build = Builder("mlp", {"hidden": tuple(_plain(width) for width in self.hidden)})
        self.model_ = self._method().fit(build, split, run).cpu()
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:  # noqa: N803
        """Class probabilities (N, K), in the order of ``classes_``."""
        check_is_fitted(self)
        x = torch.from_numpy(self._rows(X, fit=False)[0])
        exact = copy.deepcopy(self.model_).double()  # so that a row's prediction does not depend on the other rows of its batch
        with torch.inference_mode():
            parts = [exact(rows.double()).softmax(1) for rows in x.split(_ROWS)]
        shares: npt.NDArray[np.float64] = torch.cat(parts).numpy()
        return shares

    def predict(self, X: Any) -> npt.NDArray[Any]:  # noqa: N803
        """The most probable label of each row, (N,)."""
        check_is_fitted(self)
        chosen: npt.NDArray[Any] = self.classes_[self.predict_proba(X).argmax(1)]
        return chosen

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Share of rows X (N, F) whose label y (N,) is predicted; rows and weights from pandas are matched by their index."""
        weights = aligned(sample_weight, X, "sample_weight", "X")
        return float(super().score(X, aligned(y, X, "y", "X"), weights))

    def _seed(self) -> int:
        try:
            return int(check_random_state(self.random_state).randint(2**31 - 1))
        except (ValueError, TypeError):
            raise InputError(
                f"random_state is {shortened(self.random_state)}; expected None, a whole number from 0 to {2**32 - 1}, or a "
                "RandomState of NumPy"
            ) from None

    def _method(self) -> DwB:
        check.one_of("rule", self.rule, ("auto", "exact", "closed", "multi"))
        binary = len(self.classes_) == len(self.groups_) == 2
        options = {"rule": ("exact" if binary else "multi") if self.rule == "auto" else self.rule}
        return DwB.from_config(options | {name: _plain(getattr(self, name)) for name in _OPTIONS})

    def _rows(self, X: Any, *, fit: bool) -> tuple[Floats, tuple[Column, ...]]:  # noqa: N803
        """Rows as float32 (N, F), and what the columns are; a frame's columns count by type, fitted once."""
        table = as_table(X)
        if table is None:
            if getattr(getattr(X, "dtype", None), "kind", "") in ("m", "M"):
                raise InputError("X holds dates; turn them into numbers, such as days since a date")
            x = validate_data(self, X, reset=fit, dtype=np.float64, ensure_all_finite="allow-nan")
            if fit:
                self.columns_: tuple[Column, ...] | None = None
        else:
            validate_data(self, X, reset=fit, skip_check_array=True)
            if fit:
                self.columns_ = columns_of(table)
            x = matrix(table, self.columns_)
            infinite = np.argwhere(np.isinf(x.T))
            if len(infinite):
                column, row = infinite[0]
                raise InputError(f"column {(self.columns_ or ())[column].name!r} of X is infinite in row {row}")
            x = check_array(x, dtype=np.float64, ensure_all_finite="allow-nan", estimator=self)
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        if np.isinf(x).any():
            raise InputError("X holds numbers beyond float32; scale the column")
        names = getattr(self, "feature_names_in_", range(x.shape[1]))
        return x, self.columns_ or tuple(Column(name=str(name)) for name in names)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def _refuse_labels(y: npt.NDArray[Any]) -> None:
    levels = labeled(y, "y").present()
    text = [isinstance(level, str) for level in levels]
    if any(text) and not all(text):
        raise InputError(f"y holds text and numbers, {levels[:4]}; expected one of them")


def _plain(value: Any) -> Any:
    """A number of NumPy's as Python's own, as a search over parameters hands it in."""
    return value.item() if isinstance(value, np.generic) else value
