"""What makes inference fast: precision, memory format, folding, canvases, batches."""
