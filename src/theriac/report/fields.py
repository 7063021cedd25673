"""What records are made of: bounded numbers and texts, and small PNG pictures."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from pydantic import AfterValidator, Field

from theriac.core.text import LONG

MAX_PNG = 256 << 10  # bytes; a 224-pixel color photograph takes about 100 KiB
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Short = Annotated[str, Field(max_length=400)]
Long = Annotated[str, Field(max_length=LONG)]
Plain = str | bool | int | Number | None


def _png(text: str) -> str:
    if len(text) > MAX_PNG * 4 // 3 + 4:
        raise ValueError(f"the picture has {len(text):,} characters; at most {MAX_PNG:,} bytes are taken")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the picture is not base64") from None
    if not raw.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("the picture is not a PNG")
    return text


Png = Annotated[str, AfterValidator(_png)]
