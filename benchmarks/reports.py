"""Write every page that has its figures from rows.

python benchmarks reports
"""

from __future__ import annotations

from collections.abc import Callable

from fast import speed_report
from helps import adapt_report, image_sizes, transfer_report, tune
from method import heads, objective
from safe import leaks_report, unknown
from shared.pages import write_page
from shared.study import make_parser
from watch import day, monitor

REPORTS: dict[str, Callable[[], str]] = {
    "adapt": adapt_report.report,
    "benchmarks": speed_report.report,
    "copies": leaks_report.report,
    "day": day.report,
    "heads": heads.report,
    "image_sizes": image_sizes.report,
    "monitor": monitor.report,
    "objective": objective.report,
    "transfer": transfer_report.report,
    "tune": tune.report,
    "unknown": unknown.report,
}
"""Pages of docs/results by name."""


def main() -> None:
    make_parser(__doc__).parse_args()
    for name, report in REPORTS.items():
        write_page(name, report())


if __name__ == "__main__":
    main()
