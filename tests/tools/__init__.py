"""Tests of the commands for maintainers."""
