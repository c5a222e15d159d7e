"""Tests; the folders mirror model/ and service/."""
