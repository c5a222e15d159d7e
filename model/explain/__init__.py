"""What the network saw: a trace of one image's forward pass, and the stage at which a given box was lost."""
