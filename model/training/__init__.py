"""Training and evaluation. Nothing in inference imports it."""
