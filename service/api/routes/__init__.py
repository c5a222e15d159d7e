"""The HTTP routes: each declares its input and output, and passes the work to ``ImageHandler``."""
