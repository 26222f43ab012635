"""A sweep: many runs of one configuration whose parameters differ, and what is known of them.

What is drawn is a function of the sweep's file and a number, and what was trained lies in files that anything can
read, without Ray.
"""

from raysrec.sweep.config import SchedulerConfig, SweepConfig, SweepError
from raysrec.sweep.record import CurvePoint, SweepDirectory, TrialRecord, by_score

__all__ = [
    "CurvePoint",
    "SchedulerConfig",
    "SweepConfig",
    "SweepDirectory",
    "SweepError",
    "TrialRecord",
    "by_score",
]
