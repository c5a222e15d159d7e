"""What several benchmarks share. Nothing here needs more than torch, torchvision, NumPy and Pillow."""
