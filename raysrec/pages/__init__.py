"""Pages: what runs and sweeps reached, as one HTML file that opens offline."""

from raysrec.pages.runs_page import runs_page
from raysrec.pages.sweep_page import sweep_page, write_sweep_page

__all__ = ["runs_page", "sweep_page", "write_sweep_page"]
