"""The microservice: images come in over HTTP, boxes go out. Of ``model/`` it imports the facade and the structures."""
