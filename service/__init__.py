"""The microservice around the detector: HTTP in, HTTP out."""
