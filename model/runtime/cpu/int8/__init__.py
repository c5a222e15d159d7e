"""A pass: int8 on a CPU. ``layers`` are the quantized layers, ``quantize`` rewrites a network to use them."""
