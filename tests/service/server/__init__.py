"""Tests of service/server/."""
