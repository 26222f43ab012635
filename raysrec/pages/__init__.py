"""Pages: what runs and sweeps reached, as one HTML file that opens offline."""

from raysrec.pages.runs_page import runs_page
from raysrec.pages.sweep_page import sweep_page, write_sweep_page
from raysrec.pages.sweeps import SweepResults

__all__ = ["SweepResults", "runs_page", "sweep_page", "write_sweep_page"]
