"""MCP servers behind the gateway: their sessions, their messages, and what is done with both."""
