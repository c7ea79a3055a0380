"""Train with a REC algorithm on a machine without a GPU, start to finish, by one command: `trinity-rec quickstart`."""
