"""Tools of every kind: how their calls are read, and how they get to where they are answered."""
