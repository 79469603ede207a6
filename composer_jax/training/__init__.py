"""One training loop for every stage; what differs is a loss and a config."""
