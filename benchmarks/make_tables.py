"""Turn the committed results into the Markdown pages beside them.

Run it with::

    python benchmarks/make_tables.py            # every plan that has results
"""

from __future__ import annotations

from result_tables import pages


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
