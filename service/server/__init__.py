"""The servers that run the app: uvicorn on one machine, Ray Serve on several."""
