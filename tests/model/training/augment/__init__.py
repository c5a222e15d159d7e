"""Tests of model/training/augment/."""
