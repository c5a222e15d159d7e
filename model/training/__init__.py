"""Training and evaluation. Nothing in inference imports this package."""
