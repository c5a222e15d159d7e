"""The service through HTTP: throughput, overload, memory, start-up, decoding, Ray."""
