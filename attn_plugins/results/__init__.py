"""What probes reached: `probe.json` as one typed record, its writer and reader, and Table 1 from many of them.

Needs neither mmengine nor anything else beside the standard library.
"""

from .record import (
    FILE_NAME,
    DataSplit,
    Evaluation,
    ProbeResult,
    backbone_differences,
    find_results,
    read_result,
    write_result,
)
from .table import COLUMNS, PAPER, Row, collect, render

__all__ = [
    "COLUMNS",
    "FILE_NAME",
    "PAPER",
    "DataSplit",
    "Evaluation",
    "ProbeResult",
    "Row",
    "backbone_differences",
    "collect",
    "find_results",
    "read_result",
    "render",
    "write_result",
]
