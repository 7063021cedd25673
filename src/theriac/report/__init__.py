"""From results to something that one shows a colleague: records, tables, one self-contained page."""

from theriac.report.page import html, write
from theriac.report.records import Result, Study
from theriac.report.tables import markdown, table

__all__ = ["Result", "Study", "html", "markdown", "table", "write"]
