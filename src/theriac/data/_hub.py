"""Data sets from the Hugging Face hub, through the ``hub`` extra. The hub's own cache keeps files by content."""

from __future__ import annotations

from pathlib import Path

from theriac.core.errors import InputError
from theriac.data._known import Known


def fetch(name: str, known: Known) -> tuple[Path, str]:
    """Download a data set, or find it in the hub's cache.

    Args:
        name: Its name, for errors.
        known: Where it is.

    Returns:
        The local folder (or file), and the source for the card: repository and revision.

    Raises:
        InputError: Without the extra or the network, or if no repository is known; it says what to do.
    """
    local = f"or pass a local copy: load({'<folder>/' + name!r}), or put it into $THERIAC_DATA/{name}"
    if not known.repo:
        raise InputError(f"{name} has no copy on the hub that we read; get it from {known.origin} and give its path")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(f"{name} is downloaded by the hub extra: pip install 'theriac[hub]', {local}") from None
    try:
        folder = Path(snapshot_download(known.repo, repo_type="dataset", allow_patterns=list(known.files)))
    except Exception as error:  # the client raises many kinds, and other ones from version to version
        first = str(error).splitlines()[0][:120] if str(error) else ""
        raise InputError(
            f"{name} could not be downloaded from the hub repository {known.repo} ({type(error).__name__}: {first}); "
            f"check the network, {local}"
        ) from None
    paths = sorted(path for pattern in known.files for path in folder.glob(pattern))
    if not paths:
        raise InputError(f"the hub repository {known.repo} holds no {' or '.join(known.files)} any more; {local[3:]}")
    revision = folder.name if len(folder.name) == 40 else "main"
    # the files lie in one folder; a CSV is given as itself, so that its neighbors are not taken for parts of it
    where = paths[0] if paths[0].suffix == ".csv" else paths[0].parent
    return where, f"hub: {known.repo}@{revision}"
