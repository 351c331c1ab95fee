"""What probes reached: ``probe.json`` as one typed record, its writer and reader, and Table 1 from many of them.

Needs neither mmengine nor anything else beside the standard library.
"""

from .images import IMAGES_FILE, Difference, difference, interval, mcnemar, read_images, write_images
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
from .table import COLUMNS, PAPER, Row, collect, main_metric, render

__all__ = [
    "COLUMNS",
    "FILE_NAME",
    "IMAGES_FILE",
    "PAPER",
    "DataSplit",
    "Difference",
    "Evaluation",
    "ProbeResult",
    "Row",
    "backbone_differences",
    "collect",
    "difference",
    "find_results",
    "interval",
    "main_metric",
    "mcnemar",
    "read_images",
    "read_result",
    "render",
    "write_images",
    "write_result",
]
