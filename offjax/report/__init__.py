"""The report of a fit: one HTML file that needs no network."""

from offjax.report.page import write

__all__ = ["write"]
