"""HTTP: requests are read and checked, responses are written. Never imports torch."""
