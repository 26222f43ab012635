"""Pages: what runs and sweeps reached, as one HTML file that opens offline."""

from raysrec.pages.runs_page import runs_page
from raysrec.pages.sweep_page import sweep_page, write_sweep_page
from raysrec.pages.trials import Sweep

__all__ = ["Sweep", "runs_page", "sweep_page", "write_sweep_page"]
