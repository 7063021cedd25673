from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from theriac.bench import Store, make_plan, read_spec, rows
from theriac.bench import store as module
from theriac.core.errors import InputError

RESULT = {"evaluation": {"acc": {"hits": 9, "total": 10}, "asr": None}, "degenerate": []}


@pytest.fixture
def plan(quick: dict[str, Any]) -> Any:
    return make_plan(read_spec(quick))


def test_a_result_is_written_once(plan: Any, tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    first.enter(plan)
    second.enter(plan)
    key = next(iter(plan.nodes))
    first.done(key, RESULT, facts={"seconds": 1.0})
    second.done(key, {"evaluation": {"acc": {"hits": 1, "total": 10}}}, facts={"seconds": 2.0})
    second.failed(key, "late")
    assert first.status(key) == "done"
    assert first.db.execute("SELECT hits FROM scores").fetchall() == [(9,)]
    assert first.db.execute("SELECT seconds, error FROM jobs WHERE key = ?", (key,)).fetchone() == (1.0, None)
    assert len(first.statuses()) == len(plan.nodes)
    assert first.db.execute("SELECT count(*) FROM cells").fetchone() == (len(plan.cells),)
    for store in (first, second):
        store.close()


def test_failures_can_be_forgotten(plan: Any, tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.enter(plan)
        key = next(iter(plan.nodes))
        store.failed(key, "it broke", "Traceback ...")
        assert store.errors([key]) == {key: "it broke"}
        assert store.forget_failures(plan.nodes) == 1
        assert store.status(key) == "planned"


def test_what_a_row_refers_to_exists(tmp_path: Path) -> None:
    with Store(tmp_path) as store, pytest.raises(sqlite3.IntegrityError):
        store.db.execute("INSERT INTO scores VALUES ('nothing', 'after', 'acc', 1, 2)")


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE photos (name TEXT)")
    db.close()


def damaged(path: Path) -> None:
    Store(path.parent).close()
    path.with_name(path.name + "-wal").unlink(missing_ok=True)
    data = bytearray(path.read_bytes())
    data[4096:] = b"\x17" * (len(data) - 4096)
    path.write_bytes(data)


def later(path: Path) -> None:
    Store(path.parent).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


def text(path: Path) -> None:
    path.write_text("dear diary, ...")


def lacking(path: Path) -> None:
    Store(path.parent).close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE scores")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


@pytest.mark.parametrize("spoil", [foreign, damaged, later, text, lacking])
def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(spoil: Any, tmp_path: Path) -> None:
    path = tmp_path / module.FILE
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=module.FILE):
        Store(tmp_path)
    assert path.read_bytes() == before


def test_a_missing_store_is_refused_where_none_shall_be_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        Store(tmp_path, make=False)
    assert not list(tmp_path.iterdir())


def test_a_store_of_an_earlier_version_is_brought_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Any) -> None:
    with Store(tmp_path) as store:
        store.enter(plan)
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, "ALTER TABLE jobs ADD COLUMN passes INTEGER"))
    with Store(tmp_path) as store:
        assert store.db.execute("PRAGMA user_version").fetchone() == (len(module.MIGRATIONS),)
        assert store.db.execute("SELECT count(passes), count(*) FROM jobs").fetchone() == (0, len(plan.nodes))


def test_what_the_first_version_wrote_is_read_and_stays_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Any
) -> None:
    key = next(iter(plan.nodes))
    with monkeypatch.context() as earlier:
        earlier.setattr(module, "MIGRATIONS", module.MIGRATIONS[:1])
        earlier.setattr(module, "_columns", dict)
        with Store(tmp_path) as store:
            store.enter(plan)
            store.done(key, RESULT, facts={"seconds": 1.0})
    before = (tmp_path / module.FILE).read_bytes()
    with monkeypatch.context() as medium:
        medium.setattr(Store, "_open", cannot_be_written)
        with Store(tmp_path, make=False) as store:
            assert {row["key"]: (row["acc_hits"], row["row_passes"]) for row in rows(store)}[key] == (9, None)
    assert (tmp_path / module.FILE).read_bytes() == before
    with Store(tmp_path) as store:
        assert {row["key"]: (row["acc_hits"], row["row_passes"]) for row in rows(store)}[key] == (9, None)


def cannot_be_written(store: Store) -> None:
    store.db.execute("PRAGMA query_only = ON")
    store.db.execute("CREATE TABLE unwritten (name TEXT)")


def test_opening_a_store_again_keeps_the_locks_of_those_who_have_it_open(plan: Any, tmp_path: Path) -> None:
    """Another process that opens and closes the store must see that it is in use, and leave its log of writes alone.

    A sweep's log was once taken away under it, and its database was damaged: closing any file handle of the database drops
    every lock that the process has on it.
    """
    with Store(tmp_path) as first:
        with Store(tmp_path) as second:
            second.enter(plan)
        look = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM jobs').fetchone(); c.close()"
        subprocess.run([sys.executable, "-c", look, str(first.path)], check=True)
        assert first.path.with_name(f"{first.path.name}-wal").exists()
        assert first.db.execute("SELECT count(*) FROM jobs").fetchone()[0] == len(plan.nodes)


def test_a_store_that_can_not_be_written_is_read(plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        store.enter(plan)
        known = store.statuses()
    usual = sqlite3.connect

    def read_only(path: Any, **more: Any) -> sqlite3.Connection:
        return usual(path if str(path).startswith("file:") else f"{Path(path).as_uri()}?mode=ro", **{**more, "uri": True})

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with Store(tmp_path, make=False) as store:
        assert store.statuses() == known
    with Store(tmp_path) as store, pytest.raises(InputError, match="can't be written"):
        store.enter(plan)


def test_a_store_that_another_program_holds_is_not_called_damaged(
    plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.1)
    with Store(tmp_path) as store:
        store.enter(plan)
        store.db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InputError, match="is held by another program"):
            Store(tmp_path)
        store.db.execute("ROLLBACK")


def test_an_empty_file_is_no_store_with_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / module.FILE).touch()
    with pytest.raises(InputError, match="is empty"):
        Store(tmp_path, make=False)
    assert not (tmp_path / module.FILE).stat().st_size


def test_a_result_that_is_no_json_is_told(plan: Any, tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.enter(plan)
        store.db.execute("UPDATE jobs SET result = '{'")
        with pytest.raises(InputError, match="is no JSON"):
            rows(store)


def test_a_damaged_copy_does_not_take_the_place_of_a_sound_file(tmp_path: Path) -> None:
    """Of two jobs with the same tensors; the first copy was damaged where it lay, under the name of what it had held."""
    with Store(tmp_path) as store:
        homes = [store.home(name) for name in ("one", "two")]
        for home in homes:
            home.mkdir(parents=True)
            (home / "model.safetensors").write_bytes(b"right")
            if home is homes[0]:
                ((_, sha, _),) = store.keep(home)
                (home / "model.safetensors").write_bytes(b"wrong")
        assert store.keep(homes[1]) == [("model.safetensors", sha, 5)]
        assert (homes[1] / "model.safetensors").read_bytes() == b"right"
        assert (tmp_path / "tensors" / f"{sha}.safetensors").read_bytes() == b"right"
