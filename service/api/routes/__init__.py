"""The HTTP routes, each thin: it says what it takes and gives, and hands the work to the pipeline."""
