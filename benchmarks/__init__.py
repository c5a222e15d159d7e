"""What is measured: each module prints one table and writes one JSON file into ``benchmarks/results/``."""
