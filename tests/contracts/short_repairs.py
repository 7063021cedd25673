"""Options of repairs that more than one file of contracts needs; they make as little work as possible."""

from __future__ import annotations

# one candidate, judged by one kind of proxy, whatever that says
AUTO: dict[str, object] = {
    "candidates": ["ft:strong"],
    "kinds": ["patch"],
    "plant_steps": 4,
    "tuning_steps": 1,
    "rounds": 1,
    "hard": 0,
    "planted": 0,
    "accept": 1,
    "cost": 1,
}
