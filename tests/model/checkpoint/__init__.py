"""Tests of model/checkpoint/."""
