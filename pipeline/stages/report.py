"""put data, curves, sweeps, test metrics and artifacts on one self-contained page -> report/index.html"""

from pathlib import Path

from pipeline.config import Params
from pipeline.files import write_text
from pipeline.progress import say
from pipeline.report.page import render_report
from pipeline.report.vocabulary import size

PAGE = Path("report/index.html")


def main(params: Params, family: str | None) -> None:
    page = render_report(params.families, params.report, Path())
    write_text(PAGE, page)
    say(f"report: {PAGE} ({size(len(page.encode()))}); open it in a browser, it needs no network")
