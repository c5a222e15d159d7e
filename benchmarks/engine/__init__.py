"""The network alone, without the service."""
