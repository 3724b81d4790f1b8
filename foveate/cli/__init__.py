"""The command line: parse, one library call, print. The words are those of the functions."""

from foveate.cli.app import app, main

__all__ = ["app", "main"]
