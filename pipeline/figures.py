"""PNG files with the same bytes for the same picture: no date, no version."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from pipeline import files


def save_png(figure: Figure, path: Path, *, dpi: int = 120) -> None:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    files.write_bytes(path, out.getvalue())
