"""The servers that ``benchmarks.serving.compare`` compares with, one file each."""
