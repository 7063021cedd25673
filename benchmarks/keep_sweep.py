"""Keep the finished results of a sweep as a committed table, from which ``make_tables.py`` makes its page.

Run it with::

    theriac bench benchmarks/specs/digits_repairs.yaml --store runs/digits_repairs
    python benchmarks/keep_sweep.py runs/digits_repairs digits_repairs --command "theriac bench ..."
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from table import RESULTS, Table

from theriac.bench import Store, rows
from theriac.bench.tables import LABELS


def portable(value: Any) -> Any:
    """Plain data with only the last part of each absolute path, such as a data set's folder: the rest is of one machine."""
    if isinstance(value, dict):
        return {name: portable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", help="folder of the store")
    parser.add_argument("sweep", help="name of the sweep")
    parser.add_argument("--command", required=True, help="the command that made it")
    parser.add_argument("--as", dest="name", help="name of the table; that of the sweep if left out")
    words = parser.parse_args()
    table = Table.of(f"sweep_{words.name or words.sweep}", RESULTS)
    with Store(words.store, make=False) as store:
        done = [row for row in rows(store, words.sweep) if row["status"] == "done"]
    for row in done:
        place = [str(row[name]) for name in (*LABELS, "role", "seed", "defense_seed") if row[name] not in (None, "")]
        if row["role"].startswith("judged"):  # counts of a benign model: its own training and repair say how it was made
            del row["options"]
        else:
            row["options"] = json.dumps(portable(json.loads(row["options"])))
        facts = {name: value for name, value in row.items() if value is not None and name != "key"}
        table.put(" / ".join(place), {**facts, "job": row["key"], "command": words.command})
    print(f"{table.path}: {len(done)} results")


if __name__ == "__main__":
    main()
