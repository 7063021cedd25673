"""The page: complete in itself, well-formed, accessible, and safe whatever the names are."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from theriac.attacks import SIG, BadNets, SamFlat, WaNet
from theriac.core.errors import InputError
from theriac.report import Result, Study, html, write
from theriac.report.page import attack_in_words

Make = Callable[..., Result]
VOID = {"meta", "br", "img", "hr", "link", "input"}


class Reader(HTMLParser):
    """Records elements and text; fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs, _ in self.elements if name == tag]


@pytest.fixture
def page(study: Study) -> Reader:
    return Reader(html(study))


def test_hostile_names_are_text(page: Reader) -> None:
    assert page.all("script") == []
    assert not [name for _, attrs, _ in page.elements for name in attrs if name.startswith("on")]
    text = " ".join(page.text)
    assert text.count("<script>alert(1)</script>") >= 10  # title, purpose, step, classes, hardware, ...: each shown as it is
    assert "</td><img src=x onerror=alert(2)>" in text


def test_hostile_names_are_text_in_attributes_too(page: Reader) -> None:
    labels = [attrs["aria-label"] for attrs in page.all("div") if "aria-label" in attrs]
    assert any(label and "<script>" in label for label in labels)


def test_control_characters_do_not_reach_the_page(study: Study) -> None:
    text = html(study.model_copy(update={"title": "a\x00b\x1b[31mc\u202ed"}))
    assert "a\ufffdb\ufffd[31mc\ufffdd" in text


def test_it_loads_nothing(page: Reader) -> None:
    for _, attrs, _ in page.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            value = attrs.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), value
    assert page.all("link") == []
    policy = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy
    assert policy[0] is not None
    assert policy[0].startswith("default-src 'none'")


def test_styles_load_nothing(study: Study) -> None:
    css = re.search(r"<style>(.*?)</style>", html(study), re.S)
    assert css is not None
    assert "url(" not in css[1]
    assert "@import" not in css[1]
    for need in ("prefers-color-scheme: dark", "@media print", "overflow-x: auto"):
        assert need in css[1]


def test_anchors_lead_somewhere(page: Reader) -> None:
    ids = {attrs["id"] for _, attrs, _ in page.elements if "id" in attrs}
    targets = {str(attrs["href"])[1:] for attrs in page.all("a")}
    assert targets
    assert targets <= ids


def test_pictures_and_charts_have_words(page: Reader) -> None:
    assert len(page.all("img")) == 3
    assert all(attrs.get("alt") for attrs in page.all("img"))
    assert page.all("svg")
    assert all(attrs.get("aria-label") if attrs.get("role") == "img" else attrs.get("aria-hidden") for attrs in page.all("svg"))
    assert page.all("html")[0]["lang"] == "en"


def test_tables_are_tables(page: Reader) -> None:
    assert len(page.all("caption")) == len(page.all("table")) == 3  # numbers, samples, logs
    assert all(attrs.get("scope") for attrs in page.all("th"))
    boxes = [parents for tag, _, parents in page.elements if tag == "table"]
    assert all(parents[-1] == "div" for parents in boxes)
    scrolling = [attrs for attrs in page.all("div") if attrs.get("class") == "scroll"]
    assert len(scrolling) == 3
    assert all(attrs.get("tabindex") == "0" and attrs.get("role") == "region" for attrs in scrolling)


def test_tables_have_as_many_cells_as_columns(study: Study) -> None:
    for table in re.findall(r"<table>.*?</table>", html(study), re.S):
        rows = re.findall(r"<tr.*?</tr>", table, re.S)
        widths = {sum(int(c or 1) for c in re.findall(r"<t[hd](?:(?!>).)*?(?:colspan=\"(\d+)\"|>)", row)) for row in rows}
        assert len(widths) == 1, widths


def test_every_count_is_on_the_page(page: Reader) -> None:
    text = " ".join(page.text).replace("\u00a0", " ")
    for count in (
        "910/1,000",
        "891/900",
        "890/1,000",
        "500/900",
        "300/900",
        "880/1,000",
        "12/900",
        "840/900",
        "9/900",
        "850/900",
    ):
        assert count in text
    assert "99.0 %" in text
    assert "98.1 to 99.5" in text
    assert "0.707" in text  # DER by hand: (391/900 - 20/1000 + 1) / 2
    assert "+54.6" in text  # excess ASR by hand: (500 - 9)/900
    assert "1 h 1 min" in text
    assert "1 min 1 s" in text


def test_finding_and_failure_are_both_told(page: Reader) -> None:
    text = " ".join(page.text)
    assert "reduced to the control’s level" in text
    assert "mostly left in place" in text
    assert "removes" not in text
    assert "removed" not in text


def test_the_control_is_marked_in_the_charts(study: Study) -> None:
    assert html(study).count('class="control"') == 3 + 1  # in each of three panels, and its row of the table


def test_wrong_classes_are_marked_by_more_than_color(study: Study) -> None:
    cells = re.findall(r'<td class="(right|target|other)"([^>]*)>', html(study))
    assert [kind for kind, _ in cells] == ["target", "other", "right", "right"]
    assert "the attacker’s class" in cells[0][1]
    assert "wrong" in cells[1][1]


def test_warnings_and_logs_are_told(page: Reader) -> None:
    text = " ".join(page.text)
    assert "rows on which a perturbation fools the old model" in text
    assert "80.0 % → 20.0 %" in text.replace("\u00a0", " ")  # "active" of the first and of the last epoch
    assert "Remarks and warnings" in text


def test_without_an_attack_there_is_no_asr(repaired: Make, study: Study) -> None:
    blind = repaired((910,), (890,), None, attack=None)
    text = html(study.model_copy(update={"results": [blind], "exhibits": [], "steps": []}))
    reader = Reader(text)
    head = text[text.index("<thead>") : text.index("</thead>")]
    assert "ASR" not in head
    assert "DER" not in head
    assert "890/1,000" in " ".join(reader.text)
    assert "No attack is known" in " ".join(reader.text)
    assert 'id="triggers"' not in text
    explained = re.findall(r"<caption>(.*?)</caption>", text)[0]  # of the columns that are there
    assert "ACC:" in explained
    assert not any(name in explained for name in ("ASR", "RA:", "DER"))


def test_one_model_as_it_came(study: Study) -> None:
    text = " ".join(Reader(html(study.model_copy(update={"results": study.results[:1], "exhibits": []}))).text)
    assert "920/1,000" in text


def test_an_empty_study_is_still_a_page(study: Study) -> None:
    assert "holds no results" in html(study.model_copy(update={"results": [], "exhibits": []}))


def test_write_where_it_was_asked(study: Study, tmp_path: Path) -> None:
    study.write(tmp_path / "s")
    assert write(tmp_path / "s") == tmp_path / "s" / "report.html"
    assert write(tmp_path / "s" / "study.json") == tmp_path / "s" / "report.html"
    assert write(study, tmp_path / "page.html") == tmp_path / "page.html"
    assert write(study, tmp_path / "t") == tmp_path / "t" / "report.html"
    pages = [p.read_text(encoding="utf-8") for p in (tmp_path / "page.html", tmp_path / "s" / "report.html")]
    assert pages[0] == pages[1] == html(study)  # the file holds all that the page needs


def test_a_study_needs_a_place(study: Study) -> None:
    with pytest.raises(InputError, match="path is missing"):
        write(study)
    with pytest.raises(InputError, match=r"study\.json can't be read"):
        write(Path("nowhere-at-all"))


def test_nothing_is_left_behind_when_writing_fails(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("theriac.report.page.html", lambda _: "\ud800")  # can't be encoded
    with pytest.raises(UnicodeEncodeError):
        write(study, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (None, ""),
        (SIG().config(), "50 % of the target class poisoned, target class 0, delta 40"),
        (SIG.official().config(), "10 % of the training rows poisoned, target class 0, delta 40"),
        (SamFlat(attack="sig", target=3).config(), "50 % of the target class poisoned, target class 3, delta 40"),
        (
            WaNet(mode="all_to_all", poison_rate=0.003).config(),
            "0.3 % of the training rows poisoned, every class sent to the next one, strength 0.5",
        ),
        (
            {"method": "of another version", "poison_rate": 0.1, "target": 3},
            "10 % of the training rows poisoned, target class 3",
        ),
    ],
)
def test_an_attack_in_words(config, told):
    assert attack_in_words(config) == told


@pytest.mark.parametrize(
    ("targets", "classes", "told"),
    [
        (["1"], ["1", "2", "3"], "target class '1'"),
        ([], ["-1", "0", "1"], "target class '-1'"),  # of an older record: by the names of the data
        ([], [], "target class 0"),
        (["1", "2"], ["1", "2", "3"], "2 target classes"),
        (["1", "2", "3"], ["1", "2", "3"], "any class but a row's own"),
    ],
)
def test_the_target_goes_by_its_name(targets, classes, told):
    assert attack_in_words(BadNets(target=0, poison_rate=0.1).config(), targets, classes) == (
        f"10 % of the training rows poisoned, {told}, pattern white, opacity 1"
    )


def test_a_page_names_the_target_as_the_data_do(study):
    data = study.data.model_copy(update={"classes": ["1", "2", "3"]})
    text = " ".join(Reader(html(study.model_copy(update={"data": data}))).text)
    assert text.count("target class '1'") == 2  # above the bars, and above the pictures
    assert "target class 0" not in text
