"""Pages of fits and benchmarks: one HTML file each, that needs no network."""

from offjax.report.page import write, write_benchmark

__all__ = ["write", "write_benchmark"]
