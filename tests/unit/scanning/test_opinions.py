"""Second opinions on files: what a scanner's process comes to, and its bounds; the scanners themselves where installed."""

from __future__ import annotations

import importlib.util
import sys
import types
from enum import Enum, IntEnum
from pathlib import Path

import pytest

from theriac.scanning import _opinions, inspect
from theriac.scanning._opinions import TOOLS, _ask, second_opinions

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture
def instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs other code in the process of a scanner."""

    def put(code: str) -> None:
        script = tmp_path / "scanner.py"
        script.write_text(code)
        monkeypatch.setattr(_opinions, "__file__", str(script))

    return put


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import json, sys\nprint('noise')\nprint(json.dumps(f'{sys.argv[1]} clean'))", "any clean"),
        ("import json\nprint(json.dumps('suspicious: ' + chr(27) + '[2J'))", "suspicious: "),
        ("raise SystemExit(3)", "failed"),
        ("print('no json')", "failed"),
        ("import os\nos.abort()", "failed"),
        ("import time\ntime.sleep(60)", "failed (took more than 1 seconds)"),
    ],
)
def test_a_scanner_that_ends_in_any_way_says_one_line(instead, monkeypatch: pytest.MonkeyPatch, code: str, says: str):
    monkeypatch.setattr(_opinions, "SECONDS", 1 if "sleep" in code else 60)
    instead(code)
    text = _ask("any", CORPUS / "plain.pkl")
    assert text.startswith(says)
    assert text.isprintable()


def test_a_scanner_works_in_a_folder_that_goes_and_sees_the_file(instead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    instead("import json, os, sys\nopen('left', 'w').close()\nprint(json.dumps(os.getcwd() + ' ' + open(sys.argv[2]).read()))")
    (tmp_path / "file").write_text("here")
    monkeypatch.chdir(tmp_path)
    home, text = _ask("any", Path("file")).split()
    assert text == "here"
    assert not Path(home).exists()
    assert not (tmp_path / "left").exists()


def test_what_scanners_name_is_put_in_one_word_for_each_level(monkeypatch: pytest.MonkeyPatch):
    class Safety(Enum):
        Dangerous, Suspicious, Innocuous = range(3)

    def named(module: str, name: str, safety: Safety) -> types.SimpleNamespace:
        return types.SimpleNamespace(module=module, name=name, safety=safety)

    results = {
        "bad": types.SimpleNamespace(
            globals=[named("os", "system", Safety.Dangerous), named("a", "b", Safety.Suspicious)], scan_err=True
        ),
        "odd": types.SimpleNamespace(globals=[named("a", "b", Safety.Suspicious)], scan_err=False),
        "fine": types.SimpleNamespace(globals=[named("torch", "c", Safety.Innocuous)], scan_err=False),
        "broken": types.SimpleNamespace(globals=[], scan_err=True),
    }
    fake = types.SimpleNamespace(SafetyLevel=Safety, scan_file_path=results.__getitem__)
    monkeypatch.setitem(sys.modules, "picklescan", types.ModuleType("picklescan"))
    monkeypatch.setitem(sys.modules, "picklescan.scanner", fake)
    said = {name: TOOLS["picklescan"](name) for name in results}
    assert said == {"bad": "dangerous: os.system", "odd": "suspicious: a.b", "fine": "clean", "broken": "failed"}


def test_fickling_is_handed_every_pickle_that_follows_another(monkeypatch: pytest.MonkeyPatch):
    class Severity(IntEnum):
        LIKELY_SAFE, POSSIBLY_UNSAFE, LIKELY_OVERTLY_MALICIOUS = range(3)

    class Result:
        def __init__(self, word: bytes) -> None:
            self.severity = {b"a": Severity.LIKELY_SAFE, b"b": Severity.POSSIBLY_UNSAFE}.get(word, Severity(2))
            self.word = word.decode()

        def __str__(self) -> str:
            return f"{self.word} was seen; more of it\nand more"

    class Pickled:
        @staticmethod
        def load(stream):
            word = stream.read(1)
            if word == b"!":
                raise ValueError
            return word

    monkeypatch.setitem(sys.modules, "fickling", types.ModuleType("fickling"))
    monkeypatch.setitem(sys.modules, "fickling.analysis", types.SimpleNamespace(Severity=Severity, check_safety=Result))
    monkeypatch.setitem(sys.modules, "fickling.fickle", types.SimpleNamespace(Pickled=Pickled))
    monkeypatch.setattr(_opinions, "_members", lambda path: [path.encode()])
    says = {text: TOOLS["fickling"](text) for text in ("a", "ab!", "abc", "cc")}
    seen = "was seen"
    assert says == {
        "a": "clean",
        "ab!": f"suspicious: b {seen}",  # what follows is no pickle
        "abc": f"dangerous: c {seen}",
        "cc": f"dangerous: c {seen}",
    }
    with pytest.raises(ValueError):
        TOOLS["fickling"]("!")


@pytest.mark.parametrize("tool", TOOLS)
def test_installed_scanners_answer(tool: str):
    pytest.importorskip(tool)
    for name, word in (("mkdir.pkl", "dangerous"), ("plain.pkl", "clean")):
        said = {who.split()[0]: text for who, text in second_opinions(CORPUS / name)}
        assert said[tool].startswith(word), said
    report = inspect(CORPUS / "mkdir.pkl")
    assert {stance for _, stance in report.agreement} == {"agrees"}


def test_without_scanners_there_are_no_opinions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert inspect(CORPUS / "mkdir.pkl").opinions == ()
