"""Commands for maintainers: write the lock, write the tables of docs/, test the container image."""
