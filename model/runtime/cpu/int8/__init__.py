"""Inference in int8 on a CPU with oneDNN's quantised kernels."""
