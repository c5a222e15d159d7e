"""Tests of the page in service/web/."""
