"""The servers that ``benchmarks.serve`` compares with, one file each."""
