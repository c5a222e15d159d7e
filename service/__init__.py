"""The microservice: a picture comes in over HTTP, boxes go out. Of ``model/`` it knows facade and nouns only."""
