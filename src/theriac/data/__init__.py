"""Data: from a name, a path or arrays to splits with a card; augmentation on batches."""

from theriac.data._arrays import from_tensors
from theriac.data._disturbed import DISTURBANCES, disturbed
from theriac.data._folders import picture_files
from theriac.data._images import read_picture
from theriac.data._known import names
from theriac.data._labels import few_will_do, split_off
from theriac.data._marks import among, row_marks
from theriac.data._regroup import regroup
from theriac.data._shifted import SHIFTS, shifted
from theriac.data.alignment import align, align_to
from theriac.data.loading import check_name, load

__all__ = [
    "DISTURBANCES",
    "SHIFTS",
    "align",
    "align_to",
    "among",
    "check_name",
    "disturbed",
    "few_will_do",
    "from_tensors",
    "load",
    "names",
    "picture_files",
    "read_picture",
    "regroup",
    "row_marks",
    "shifted",
    "split_off",
]
