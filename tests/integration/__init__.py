"""Tests of the whole service: real processes, real signals, real clients."""
