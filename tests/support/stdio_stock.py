"""A local MCP server of the stock SDK, which speaks both eras."""

from mcp.server import MCPServer
from mcp.server.mcpserver import Context

server = MCPServer("local")


@server.tool()
def echo(text: str) -> str:
    """Says it again."""
    return text


@server.tool()
async def steps(count: int, ctx: Context) -> str:
    """Tells of its progress."""
    for step in range(count):
        await ctx.report_progress(step + 1, count)
    return "done"


@server.resource("memo://local")
def memo() -> str:
    """A memo."""
    return "remember"


@server.prompt()
def greet(name: str) -> str:
    """A greeting."""
    return f"Greet {name}."


if __name__ == "__main__":
    server.run("stdio")
