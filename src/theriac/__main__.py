"""``python -m theriac`` is the ``theriac`` command."""

from theriac.cli.main import run

if __name__ == "__main__":
    run()
