"""What the agent is asking, in one shape for all protocols."""
