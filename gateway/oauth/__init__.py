"""Logging in by OAuth 2.0: tokens that agents show here, and those that the gateway itself shows to tools."""
