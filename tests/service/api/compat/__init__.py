"""Tests of service/api/compat/."""
