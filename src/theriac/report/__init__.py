"""Reports of results: records, tables, one self-contained page."""

from theriac.report.collect import png as picture
from theriac.report.exporting import export
from theriac.report.model_cards import model_card
from theriac.report.page import html, render, write
from theriac.report.records import Result, Study
from theriac.report.tables import markdown, table

__all__ = ["Result", "Study", "export", "html", "markdown", "model_card", "picture", "render", "table", "write"]
