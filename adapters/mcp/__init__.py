"""MCP Streamable HTTP without I/O: what messages say, and how the gateway answers them, in both of its eras."""
