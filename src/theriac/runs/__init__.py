"""One piece of work from data to record: the job, its key, its run folder, and the models and rows that it starts from."""

from theriac.core.errors import NothingToDoError, StoppedError
from theriac.runs import sinks
from theriac.runs.executing import Record, execute
from theriac.runs.job import Job, data_key, key
from theriac.runs.measuring import Limits, Measurement, measure
from theriac.runs.opening import Opened, Wanted, open_model, open_network
from theriac.runs.recording import record
from theriac.runs.source import Clean, Source

__all__ = [
    "Clean",
    "Job",
    "Limits",
    "Measurement",
    "NothingToDoError",
    "Opened",
    "Record",
    "Source",
    "StoppedError",
    "Wanted",
    "data_key",
    "execute",
    "key",
    "measure",
    "open_model",
    "open_network",
    "record",
    "sinks",
]
