"""The command line: ``offjax parameterize | energy | gradient | check | export | fit | report``."""

from offjax.cli.app import main

__all__ = ["main"]
