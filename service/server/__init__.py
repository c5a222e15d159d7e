"""What runs the app: uvicorn, or Ray Serve past one machine."""
