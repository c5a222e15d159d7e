"""The microservice: a picture comes in over HTTP, boxes go out. Of ``model/`` it knows the facade and the nouns only."""
