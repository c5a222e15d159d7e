"""Tests of service/rendering/."""
