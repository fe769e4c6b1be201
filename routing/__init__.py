"""Where calls can go: routes, their weighted arms, and targets."""
