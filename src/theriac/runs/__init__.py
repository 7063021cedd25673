"""One piece of work from data to record: the job, its key, its run folder, and the models and rows that it starts from."""

from theriac.core.errors import NothingToDoError, StoppedError
from theriac.runs.execute import Record, execute
from theriac.runs.job import Clean, Job, data_key, key
from theriac.runs.opening import Opened, Wanted, open_model
from theriac.runs.recording import record
from theriac.runs.source import Source

__all__ = [
    "Clean",
    "Job",
    "NothingToDoError",
    "Opened",
    "Record",
    "Source",
    "StoppedError",
    "Wanted",
    "data_key",
    "execute",
    "key",
    "open_model",
    "record",
]
