"""What makes inference fast: precision, memory format, folding, compilation, canvases, batches."""
