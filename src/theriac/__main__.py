"""``python -m theriac`` is the ``theriac`` command."""

from theriac.cli import run

if __name__ == "__main__":
    run()
