"""Write the generated tables of docs/: ``python -m tools.docs``."""
