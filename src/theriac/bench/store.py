"""The store: one SQLite file and run folders, that several processes write to and that a kill at any moment leaves intact."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from theriac.bench.plans import Node, Plan
from theriac.core.errors import InputError
from theriac.core.files import is_regular
from theriac.core.paths import DiskFullError, as_path, is_full, make_folder
from theriac.models.store import digest
from theriac.runs.job import clean_facts, method_facts, model_facts
from theriac.training import Recipe, recipe

FILE = "store.sqlite"
APPLICATION = 0x54485243  # "THRC", in the head of the file
WAIT_S = 60.0  # for another writer

_CREATE = """
CREATE TABLE jobs (
  key TEXT PRIMARY KEY,
  kind TEXT NOT NULL CHECK (kind IN ('train', 'repair', 'debias', 'judge')),
  label TEXT NOT NULL,
  options TEXT NOT NULL,             -- JSON: data, model, recipe, attack, defense with versions, clean rows, seed
  status TEXT NOT NULL DEFAULT 'planned' CHECK (status IN ('planned', 'done', 'failed')),
  result TEXT,                       -- JSON: evaluation, before, der, degenerate, outcome, warnings
  seconds REAL, cpu_seconds REAL, peak_mb REAL, finished REAL,
  machine TEXT, device TEXT, precision TEXT, versions TEXT,
  error TEXT, traceback TEXT, attempts INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE needs (
  key TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE,
  place INTEGER NOT NULL,            -- 0: the model, 1: whose trigger
  other TEXT NOT NULL REFERENCES jobs,
  PRIMARY KEY (key, place)
) STRICT;
CREATE TABLE scores (
  key TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE,
  stage TEXT NOT NULL CHECK (stage IN ('before', 'after')),
  name TEXT NOT NULL,
  hits INTEGER NOT NULL, total INTEGER NOT NULL CHECK (0 <= hits AND hits <= total AND total > 0),
  PRIMARY KEY (key, stage, name)
) STRICT;
CREATE TABLE files (
  key TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE,
  name TEXT NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL,
  PRIMARY KEY (key, name)
) STRICT;
CREATE TABLE pictures (
  key TEXT PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
  png BLOB NOT NULL                  -- one row: clean, stamped, ten times the difference
) STRICT;
CREATE TABLE sweeps (name TEXT PRIMARY KEY, spec TEXT NOT NULL, refused TEXT NOT NULL, started REAL NOT NULL) STRICT;
CREATE TABLE cells (
  sweep TEXT NOT NULL REFERENCES sweeps ON DELETE CASCADE,
  place INTEGER NOT NULL,
  key TEXT NOT NULL REFERENCES jobs,
  data TEXT NOT NULL, model TEXT NOT NULL, recipe TEXT NOT NULL, attack TEXT NOT NULL, defense TEXT NOT NULL,
  clean TEXT NOT NULL, role TEXT NOT NULL, seed INTEGER NOT NULL, defense_seed INTEGER,
  PRIMARY KEY (sweep, place)
) STRICT;
CREATE INDEX cells_by_key ON cells (key);
CREATE INDEX needs_by_other ON needs (other);
"""

_ROW_PASSES = "ALTER TABLE jobs ADD COLUMN row_passes INTEGER"

# entry n brings a store from version n to n + 1; entries are never changed
MIGRATIONS: tuple[str, ...] = (_CREATE, _ROW_PASSES)


class Store:
    """A folder with ``store.sqlite``, ``runs/KEY/`` and ``tensors/SHA256.safetensors``.

    Args:
        folder: Made if missing.
        make: Whether a missing store is made; else it is refused.

    Raises:
        InputError: If the folder holds a database of something else, a damaged one, or one of a later version; nothing of it is
            changed.
        DiskFullError: If there is no room.

    Examples:
        >>> import tempfile
        >>> with Store(tempfile.mkdtemp()) as store:
        ...     store.statuses()
        {}
    """

    def __init__(self, folder: str | Path, *, make: bool = True) -> None:
        self.folder = as_path("store", folder)
        self.path = self.folder / FILE
        if not make and self.path.is_file() and not self.path.stat().st_size:
            raise InputError(f"{self.path} is empty; expected the store of a sweep (restore a copy, or run the sweep again)")
        if not make and not self.path.is_file():
            raise InputError(f"{self.folder} holds no {FILE}; expected the store of a sweep (theriac bench SPEC makes one)")
        if make:
            make_folder("store", self.folder)
        self._check_file()
        self.db = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self.db.close()
            why = _refused(error)
            if why is not None and not make:
                self._read_only(why)
                return
            if why is not None:
                raise InputError(f"{self.path} {why}; nothing was done: take a folder that you may write to") from None
            if is_full(error):
                raise DiskFullError(f"the disk is full: nothing can be written to {self.path}") from None
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
                raise InputError(f"{self.path} is not a database of SQLite; it is left as it is, take another folder") from None
            raise InputError(
                f"{self.path} is damaged ({error}); it is left as it is: restore a copy, or take another folder"
            ) from None
        except InputError:
            self.db.close()
            raise

    def _read_only(self, why: str) -> None:
        """Open it only to read, as from a folder or a medium that can't be written.

        Raises:
            InputError: If that can't be done either.
        """
        pending = self.path.with_name(f"{FILE}-wal")
        mode = "" if pending.exists() and pending.stat().st_size else "&immutable=1"  # else SQLite would make files beside it
        try:
            self.db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro{mode}", uri=True, isolation_level=None)
            owner, version = (self.db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self.path} {why}, and can't be read either ({error})") from None
        if owner != APPLICATION or not 0 < version <= len(MIGRATIONS):
            self.db.close()
            raise InputError(f"{self.path} {why}, and is no store of this version; it is left as it is")
        if version < len(MIGRATIONS):  # read from a copy in memory, which is brought to this version
            copied = sqlite3.connect(":memory:", isolation_level=None)
            self.db.backup(copied)
            self.db.close()
            self.db = copied
            self._migrate(version)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the store can be opened again."""
        self.db.close()

    def _check_file(self) -> None:
        """Refuse a path that is not a file; SQLite itself refuses other files than databases.

        The file is not opened here: closing it would drop the locks of every connection that this process has, and another
        process could then take the log of writes away.
        """
        if (self.path.exists() or self.path.is_symlink()) and not is_regular(self.path):
            raise InputError(f"{self.path} is not a file")

    def _open(self) -> None:
        for pragma in ("trusted_schema = OFF", "foreign_keys = ON", "synchronous = NORMAL"):
            self.db.execute(f"PRAGMA {pragma}")
        with self._transaction():  # two processes that make it at once do it one after the other
            owner, version = (self.db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
            tables = self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if owner != APPLICATION and (tables or version):
                raise InputError(f"{self.path} is a database of another program; it is left as it is, take another folder")
            if version > len(MIGRATIONS):
                raise InputError(
                    f"{self.path} has schema version {version}; this Theriac knows {len(MIGRATIONS)}: use a later one"
                )
            self._migrate(version)
        self.db.execute("PRAGMA journal_mode = WAL")  # where the file system can't, SQLite keeps to its older way
        answer = self.db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if answer != "ok":
            raise sqlite3.DatabaseError(answer)
        for table, columns in _columns().items():
            lacking = columns - (there := _columns_of(self.db, table))
            if lacking:
                raise sqlite3.DatabaseError(f"no column {sorted(lacking)[0]} in {table}" if there else f"no table {table}")

    def _migrate(self, version: int) -> None:
        """Bring the tables from a version to this one's."""
        for number in range(version, len(MIGRATIONS)):
            for statement in MIGRATIONS[number].split(";"):
                self.db.execute(statement)
            self.db.execute(f"PRAGMA application_id = {APPLICATION}")
            self.db.execute(f"PRAGMA user_version = {number + 1}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, alone among writers.

        Raises:
            DiskFullError: If there is no room; nothing was changed.
        """
        try:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            with contextlib.suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
            if is_full(error) or "disk is full" in str(error) or "disk I/O" in str(error):
                raise DiskFullError(f"the disk is full: nothing can be written to {self.path}") from None
            if (why := _refused(error)) is not None:
                raise InputError(f"{self.path} {why}; nothing was done") from None
            raise

    # writing

    def enter(self, plan: Plan) -> None:
        """Enter the jobs and cells of a plan; results that exist stay."""
        nodes = plan.nodes.values()
        jobs = [(n.key, n.kind, str(n.cell), json.dumps(options_of(n), sort_keys=True, default=str)) for n in nodes]
        needs = [(n.key, i, other) for n in nodes for i, other in enumerate(n.needs)]
        name = plan.spec.name
        cells = [(name, i, key, *(getattr(cell, f) for f in cell.__slots__)) for i, (cell, key) in enumerate(plan.cells)]
        with self._transaction():
            # what decides a result is written again: an earlier version of this program may have said less of it
            enter = "INSERT INTO jobs (key, kind, label, options) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET options = ?4"
            self.db.executemany(enter, jobs)
            self.db.executemany("INSERT INTO needs VALUES (?, ?, ?) ON CONFLICT DO NOTHING", needs)
            self.db.execute(
                "INSERT INTO sweeps VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET spec = ?2, refused = ?3",
                (name, json.dumps(plan.spec.to_dict()), json.dumps(plan.refused), time.time()),
            )
            self.db.execute("DELETE FROM cells WHERE sweep = ?", (name,))
            self.db.executemany(f"INSERT INTO cells VALUES ({', '.join('?' * 12)})", cells)

    def done(
        self,
        key: str,
        result: Mapping[str, Any],
        *,
        facts: Mapping[str, Any],
        files: Iterable[tuple[str, str, int]] = (),
        picture: bytes | None = None,
    ) -> None:
        """Write a result, complete or not at all; a result that is there already stays as it is.

        Args:
            key: The job, which :meth:`enter` has made known.
            result: ``evaluation``, ``before`` and what else its record says.
            facts: Columns of its row: seconds, cpu_seconds, peak_mb, row_passes, machine, device, precision, versions.
            files: Name, hash and size of its files.
            picture: The trigger as a small PNG.
        """
        scores = [
            (key, stage, name, rate["hits"], rate["total"])
            for stage, part in (("before", "before"), ("after", "evaluation"))
            for name, rate in (result.get(part) or {}).items()
            if name in ("acc", "asr", "ra", "target_acc") and rate is not None
        ]
        columns = {"status": "done", "result": json.dumps(result, allow_nan=False), "finished": time.time(), **facts}
        columns |= {"error": None, "traceback": None}
        with self._transaction():
            changed = self._update(key, columns)
            # a model that was dropped and made again has files, whatever was counted of it before
            self.db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", [(key, *file) for file in files])
            if changed:
                self.db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)", scores)
                if picture is not None:
                    self.db.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?)", (key, picture))

    def failed(self, key: str, error: str, trace: str = "", facts: Mapping[str, Any] | None = None) -> None:
        """Write that a job failed; a result that is there stays."""
        columns = {"status": "failed", "error": error[:2000], "traceback": trace[-20_000:], "finished": time.time()}
        with self._transaction():
            self._update(key, {**columns, **(facts or {})})

    def _update(self, key: str, columns: Mapping[str, Any]) -> bool:
        sets = ", ".join(f"{name} = ?" for name in columns)
        done = self.db.execute(
            f"UPDATE jobs SET {sets}, attempts = attempts + 1 WHERE key = ? AND status != 'done'", (*columns.values(), key)
        )
        return done.rowcount > 0

    def forget_failures(self, keys: Iterable[str]) -> int:
        """Make failed jobs planned ones again; returns how many."""
        with self._transaction():
            rows = self.db.executemany(
                "UPDATE jobs SET status = 'planned', error = NULL, traceback = NULL WHERE key = ? AND status = 'failed'",
                [(key,) for key in keys],
            )
        return rows.rowcount

    # reading

    def statuses(self) -> dict[str, str]:
        """Status of every job by key."""
        return dict(self.db.execute("SELECT key, status FROM jobs"))

    def status(self, key: str) -> str:
        """Status of one job; empty if it is unknown."""
        row = self.db.execute("SELECT status FROM jobs WHERE key = ?", (key,)).fetchone()
        return "" if row is None else str(row[0])

    def errors(self, keys: Iterable[str]) -> dict[str, str]:
        """What went wrong with these jobs."""
        chosen = set(keys)
        rows = self.db.execute("SELECT key, error FROM jobs WHERE error IS NOT NULL")
        return {key: error for key, error in rows if key in chosen}

    def sweeps(self) -> list[str]:
        """Names of the sweeps, the oldest first."""
        return [name for (name,) in self.db.execute("SELECT name FROM sweeps ORDER BY started, name")]

    def pictures(self, keys: Iterable[str]) -> dict[str, bytes]:
        """PNG files of triggers of these jobs, where there are some."""
        chosen = set(keys)
        return {key: png for key, png in self.db.execute("SELECT key, png FROM pictures ORDER BY key") if key in chosen}

    def refused(self, sweep: str) -> dict[str, str]:
        """Pairings that a sweep refused, with their reasons."""
        line = self.db.execute("SELECT refused FROM sweeps WHERE name = ?", (sweep,)).fetchone()
        return {} if line is None else dict(json.loads(line[0]))

    def timings(self) -> list[tuple[str, dict[str, Any], float]]:
        """Kind, options and seconds of every finished job."""
        rows = self.db.execute("SELECT kind, options, seconds FROM jobs WHERE status = 'done' AND seconds IS NOT NULL")
        return [(kind, json.loads(options), seconds) for kind, options, seconds in rows]

    # files

    def home(self, key: str) -> Path:
        """The run folder of a job."""
        return self.folder / "runs" / key

    def keep(self, home: Path) -> list[tuple[str, str, int]]:
        """Store a run folder's tensors by content, each once; returns name, hash and size of each."""
        files = []
        for file in sorted(home.glob("*.safetensors")):
            sha, size = digest(file), file.stat().st_size
            where = self.folder / "tensors" / f"{sha}.safetensors"
            where.parent.mkdir(exist_ok=True)
            with contextlib.suppress(OSError):  # a file system without links keeps its one copy in the run folder
                _link(file, where)
            files.append((file.name, sha, size))
        return files

    def tensors_of(self, key: str) -> dict[str, tuple[str, int]]:
        """Hash and size of each file of tensors that a job's folder had when it was done."""
        lines = self.db.execute("SELECT name, sha256, bytes FROM files WHERE key = ?", (key,))
        return {name: (sha, size) for name, sha, size in lines}

    def drop(self, keys: Iterable[str]) -> None:
        """Delete the run folders of these jobs; their results stay, and a job that needs such a model makes it again."""
        keys = list(keys)
        for key in keys:
            shutil.rmtree(self.home(key), ignore_errors=True)
        with self._transaction():
            self.db.executemany("DELETE FROM files WHERE key = ?", [(key,) for key in keys])
        self._sweep_tensors()

    def collect(self) -> dict[str, int]:
        """Delete what no result and no sweep needs: jobs of no sweep, folders of no job, tensors of no folder.

        Returns:
            How many jobs, folders and files went, and their bytes.
        """
        gone = {"jobs": 0, "folders": 0, "files": 0, "bytes": 0}
        with self._transaction():
            while True:  # from the leaves on: a job that another needs stays
                rows = self.db.execute(
                    "DELETE FROM jobs WHERE key NOT IN (SELECT key FROM cells) AND key NOT IN (SELECT other FROM needs)"
                ).rowcount
                gone["jobs"] += rows
                if not rows:
                    break
        known = self.statuses()
        for home in self._inside("runs"):
            if home.name not in known:
                gone["bytes"] += sum(f.stat().st_size for f in home.glob("*") if f.is_file() and f.stat().st_nlink == 1)
                shutil.rmtree(home, ignore_errors=True)
                gone["folders"] += 1
        files, freed = self._sweep_tensors()
        gone["files"], gone["bytes"] = files, gone["bytes"] + freed
        return gone

    def _sweep_tensors(self) -> tuple[int, int]:
        """Delete tensors that no run folder has any more; how many files went, and their bytes."""
        count = freed = 0
        for file in self._inside("tensors"):
            with contextlib.suppress(FileNotFoundError):  # another process took it
                if file.stat().st_nlink == 1:
                    count, freed = count + 1, freed + file.stat().st_size
                    file.unlink()
        return count, freed

    def _inside(self, name: str) -> list[Path]:
        folder = self.folder / name
        return sorted(folder.iterdir()) if folder.is_dir() else []


@functools.cache
def _columns() -> dict[str, set[str]]:
    """Names of the columns of every table of a store."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        for migration in MIGRATIONS:
            db.executescript(migration)
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: _columns_of(db, table) for table in tables}


def _columns_of(db: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in db.execute(f"PRAGMA table_info({table})")}


def _refused(error: sqlite3.DatabaseError) -> str | None:
    """Why a sound database can't be written, in words; None if that is not what the error says."""
    return {
        sqlite3.SQLITE_CANTOPEN: "can't be opened for writing",
        sqlite3.SQLITE_READONLY: "can't be written",
        sqlite3.SQLITE_PERM: "can't be written",
        sqlite3.SQLITE_BUSY: f"is held by another program, for more than {WAIT_S:g} s",
    }.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)


def _link(file: Path, where: Path) -> None:
    """Make ``where``, which is called after the content of ``file``, and ``file`` names of the same bytes."""
    if where.exists() and where.samefile(file):
        return
    try:
        os.link(file, where)
    except FileExistsError:  # the same content from another job, unless it was damaged since: keep one of them
        source, target = (where, file) if digest(where) == digest(file) else (file, where)
        spare = target.with_name(f".{target.name}.part")
        spare.unlink(missing_ok=True)
        os.link(source, spare)
        os.replace(spare, target)


def options_of(node: Node) -> dict[str, Any]:
    """What decides a job's result, as plain data for its row."""
    job = node.job
    options: dict[str, Any] = {
        "judge": list(node.needs) if node.kind == "judge" else None,
        "audit": None if node.audit is None else dataclasses.asdict(node.audit),
        "data": job.data.facts(),
        "model": None if job.model is None else model_facts(job.model),
        "recipe": None if job.recipe is None else job.recipe.name,
        "recipe_options": None if job.recipe is None else _changed(job.recipe),
        "augment": job.data.augment,
        "attack": method_facts(job.attack),
        "defense": method_facts(job.defense),
        "clean": None if job.clean is None else clean_facts(job.clean),
        "seed": job.seed,
        "precision": job.precision,
        "compared": None if job.kind != "debias" else [job.against, job.positive],
        "content": node.rows[:16] or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _changed(plan: Recipe) -> dict[str, Any] | None:
    """Options of a recipe that are not those of the recipe of that name, all of one's own; None if there are none."""
    own = dataclasses.asdict(plan)
    try:
        usual = dataclasses.asdict(recipe(plan.name))
    except InputError:  # a recipe of the user's own
        usual = {"name": plan.name}
    return {name: value for name, value in own.items() if name not in usual or value != usual[name]} or None
