"""Commands as in the tests of the command line."""

from tests.cli.conftest import bare, here

__all__ = ["bare", "here"]
