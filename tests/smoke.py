"""A short walk through an installed Theriac, outside of the repository: ``make dist`` and ``make test-oldest`` run it.

python tests/smoke.py [folder]: what a first user touches in Python and on the command line, on digits and on a table.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import theriac as th
from theriac.debias import DwBClassifier


def main(folder: Path) -> None:
    """Walk."""
    print(f"theriac {th.__version__} from {Path(th.__file__).parent}")
    data, build = th.load("digits"), th.Builder("preact_resnet18", {"width": 8})
    attack, run = th.attacks.BadNets(target=0), th.Run(seed=0, quiet=True)
    victim = th.train(build, attack.poison(data.train), recipe="short_4", run=run)
    before = th.evaluate(victim, data.test, attack)
    assert before.acc.value > 0.6, before
    assert before.asr is not None
    assert before.asr.value > 0.6, before

    clean, repair = data.train.sample(0.2, stratified=True), th.repairs.FT(epochs=2)
    fixed = repair.repair(victim, clean, run)
    after = th.evaluate(fixed, data.test, attack)
    home = th.record(
        folder / "fixed", fixed, before=before, after=after, run=run, method=repair, attack=attack, data=data, clean=clean
    )
    x = data.test.x[:4].float() / 255
    assert bool((th.load_model(home)(x) == fixed(x)).all())

    draw = np.random.default_rng(0)
    sex = draw.choice(["f", "m"], 200)
    table = np.column_stack([draw.normal(size=200), sex == "m"])
    label = np.where(table.sum(1) > 0.5, "yes", "no")
    fair = DwBClassifier(hidden=(8,), min_steps=10, random_state=0).fit(table, label, sensitive_features=sex)
    print(th.fairness(fair, table, y_true=label, sensitive_features=sex))

    assert command("--version") == f"theriac {th.__version__}\n"
    assert "badnets" in command("list", "attacks")
    assert "final_norm" in command("list", "preact_resnet18")
    assert json.loads(command("eval", home, "--json", "--quiet"))
    page = Path(command("report", home, "--quiet").strip())
    assert page.stat().st_size > 10_000
    print("smoke test passed")


def command(*words: object) -> str:
    """What the installed command says on standard output."""
    line = [sys.executable, "-m", "theriac", *map(str, words)]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
