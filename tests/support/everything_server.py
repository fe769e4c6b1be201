"""An MCP server of the stock SDK that has something of everything, as a process of its own.

`python -m tests.support.everything_server` prints `everything: URL` and serves both eras until it is terminated. What
begins with `test` is what the official conformance suite looks for, as it says in its scenarios' descriptions; the rest
is there for the clients of our own tests.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import struct
import sys
import zlib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, RequestStateSecurity
from mcp.server.mcpserver.prompts.base import Prompt, UserMessage
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.shared.exceptions import MCPError
from mcp.types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    Completion,
    CompletionArgument,
    CompletionContext,
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    InputRequest,
    InputRequiredResult,
    JSONRPCMessage,
    ListRootsRequest,
    ListRootsResult,
    PromptReference,
    ResourceTemplateReference,
    SamplingMessage,
    SetLevelRequestParams,
    SubscribeRequestParams,
    TextContent,
    TextResourceContents,
    UnsubscribeRequestParams,
)
from pydantic import BaseModel, Field

READY: Final = "everything: "


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PIXEL: Final = base64.b64encode(
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    + _chunk(b"IDAT", zlib.compress(b"\0\xff\0\0"))
    + _chunk(b"IEND", b"")
).decode()
"""A PNG of one red pixel."""
SILENCE: Final = base64.b64encode(
    b"RIFF\x26\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\x02\0\0\0\0\0"
).decode()
"""A WAV file of one sample."""


class Log(EventStore):
    """What went over streams, for those who come back for the rest."""

    def __init__(self) -> None:
        self._events: list[tuple[str, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        if not last_event_id.isdecimal() or not 0 < int(last_event_id) <= len(self._events):
            return None
        seen = int(last_event_id)
        stream = self._events[seen - 1][0]
        for number, (of, message) in enumerate(self._events[seen:], seen + 1):
            if of == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


SEALED: Final = RequestStateSecurity(keys=[b"kept by nobody but this server of tests"])
server = MCPServer("everything", version="1.0", request_state_security=SEALED)


def text(said: str) -> TextContent:
    return TextContent(type="text", text=said)


def document(uri: str, mime: str, said: str) -> EmbeddedResource:
    return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, mime_type=mime, text=said))


IMAGE: Final = ImageContent(type="image", data=PIXEL, mime_type="image/png")


# --- tools whose answers have content of every kind -------------------------------------------------------------------


@server.tool()
def test_simple_text() -> str:
    """Answers with a text."""
    return "This is a simple text response for testing."


@server.tool()
def test_image_content() -> list[ImageContent]:
    """Answers with an image."""
    return [IMAGE]


@server.tool()
def test_audio_content() -> list[AudioContent]:
    """Answers with a sound."""
    return [AudioContent(type="audio", data=SILENCE, mime_type="audio/wav")]


@server.tool()
def test_embedded_resource() -> list[EmbeddedResource]:
    """Answers with a resource."""
    return [document("test://embedded-resource", "text/plain", "This is an embedded resource content.")]


@server.tool()
def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
    """Answers with a text, an image and a resource."""
    mixed = document("test://mixed-content-resource", "application/json", json.dumps({"test": "data", "value": 123}))
    return [text("Multiple content types test:"), IMAGE, mixed]


@server.tool()
def test_error_handling() -> str:
    """Fails."""
    raise ValueError("This tool intentionally returns an error for testing")


@server.tool()
def echo(said: str) -> str:
    """Says it again."""
    return said


@server.tool()
def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


REGION: Final = Field(description="Stands in a header as well.", json_schema_extra={"x-mcp-header": "Region"})


@server.tool()
def test_x_mcp_header(region: Annotated[str, REGION]) -> str:
    """Says the region that its request names twice."""
    return f"The region is {region}."


ADDRESS: Final = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
"""Keywords of JSON Schema 2020-12 that a list must not lose."""


@server.tool()
def json_schema_2020_12_tool() -> str:
    """Takes an address, as its schema says."""
    return "taken"


server._tool_manager._tools["json_schema_2020_12_tool"].parameters = ADDRESS


# --- tools that say something before they answer ----------------------------------------------------------------------


@server.tool()
async def test_tool_with_logging(ctx: Context) -> str:
    """Logs three lines."""
    for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(line)  # deprecated, and served all the same
        await asyncio.sleep(0.05)
    return "logged"


@server.tool()
async def test_tool_with_progress(ctx: Context) -> str:
    """Reports on its progress three times."""
    for percent in (0, 50, 100):
        await ctx.report_progress(percent, 100, f"Completed step {percent} of 100")
        await asyncio.sleep(0.05)
    return "done"


@server.tool()
async def test_reconnection(ctx: Context) -> str:
    """Closes the stream on which it is awaited, and answers later: its client comes back for the answer."""
    await ctx.info("before the stream ends")
    await ctx.close_sse_stream()
    await asyncio.sleep(0.2)
    await ctx.info("after the stream has ended")
    return "Reconnection test completed"


under_way: dict[str, str] = {}
"""Calls of `linger` -> what became of them."""


@server.tool()
async def linger(name: str, ctx: Context) -> str:
    """Works until it is told to stop."""
    under_way[name] = "working"
    try:
        await ctx.report_progress(1, 2, "working")
        await asyncio.sleep(30)
    except BaseException:
        under_way[name] = "cancelled"
        raise
    under_way[name] = "finished"
    return "finished"


@server.tool()
async def fate(name: str) -> str:
    """What became of a call of `linger`; waits a while for its end."""
    for _ in range(100):
        if under_way.get(name) not in (None, "working"):
            break
        await asyncio.sleep(0.05)
    return under_way.get(name, "unknown")


def momentary() -> str:
    """Is there for a moment only."""
    return "here"


@server.tool()
async def test_trigger_tool_change(ctx: Context) -> str:
    """Adds a tool, removes it, and tells whoever listens."""
    server.add_tool(momentary)
    server.remove_tool("momentary")
    await ctx.notify_tools_changed()
    return "changed"


@server.tool()
async def test_trigger_prompt_change(ctx: Context) -> str:
    """Adds a prompt, removes it, and tells whoever listens."""
    server.add_prompt(Prompt.from_function(momentary, name="momentary"))
    server.remove_prompt("momentary")
    await ctx.notify_prompts_changed()
    return "changed"


@server.tool()
async def announce(ctx: Context) -> str:
    """Says on the client's own stream that there are other tools (legacy)."""
    await ctx.session.send_tool_list_changed()
    return "announced"


# --- tools that ask their client while a call of them is under way (legacy) -------------------------------------------


@server.tool()
async def test_sampling(prompt: str, ctx: Context) -> str:
    """Has the client's model answer a prompt."""
    answer = await ctx.session.create_message(
        messages=[SamplingMessage(role="user", content=text(prompt))], max_tokens=100, related_request_id=ctx.request_id
    )
    return f"LLM response: {answer.content.text if answer.content.type == 'text' else 'no text'}"


class Answered(BaseModel):
    response: str = Field(description="What the user says")


class Defaults(BaseModel):
    """One member of each primitive type, with a default."""

    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: str = Field("active", json_schema_extra={"enum": ["active", "inactive", "pending"]})
    verified: bool = True


def _titled(**titles: str) -> list[Any]:
    return [{"const": value, "title": title} for value, title in titles.items()]


class Choices(BaseModel):
    """One member of each kind of choice."""

    untitledSingle: str = Field(json_schema_extra={"enum": ["active", "inactive", "pending"]})
    titledSingle: str = Field(json_schema_extra={"oneOf": _titled(low="Low", medium="Medium", high="High")})
    untitledMulti: list[str] = Field(json_schema_extra={"items": {"type": "string", "enum": ["read", "write"]}})
    titledMulti: list[str] = Field(json_schema_extra={"items": {"anyOf": _titled(bug="Bug", feature="Feature")}})
    legacyEnum: str = Field(json_schema_extra={"enum": ["s", "l"], "enumNames": ["Small", "Large"]})


async def _elicited(ctx: Context, message: str, form: type[BaseModel]) -> str:
    answer = await ctx.elicit(message=message, schema=form)
    content = answer.data.model_dump_json() if answer.action == "accept" else "{}"
    return f"User response: action={answer.action}, content={content}"


@server.tool()
async def test_elicitation(message: str, ctx: Context) -> str:
    """Asks the user a question."""
    return await _elicited(ctx, message, Answered)


@server.tool()
async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
    """Shows the user a form that is filled in already."""
    return await _elicited(ctx, "Look this over", Defaults)


@server.tool()
async def test_elicitation_sep1330_enums(ctx: Context) -> str:
    """Shows the user choices."""
    return await _elicited(ctx, "Choose", Choices)


# --- tools that answer with a question (modern) -----------------------------------------------------------------------


def asking(message: str, member: str, kind: Literal["string", "boolean"] = "string") -> ElicitRequest:
    form = {"type": "object", "properties": {member: {"type": kind}}, "required": [member]}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=form))


def sampling(prompt: str) -> CreateMessageRequest:
    said = SamplingMessage(role="user", content=text(prompt))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[said], max_tokens=100))


def needs(state: str | None = None, **questions: InputRequest) -> InputRequiredResult:
    return InputRequiredResult(input_requests=questions, request_state=state)


def answers(ctx: Context) -> Mapping[str, Any]:
    return ctx.input_responses or {}


def _filled_in(answer: object, member: str) -> str:
    return str(answer.content.get(member, "")) if isinstance(answer, ElicitResult) and answer.content else ""


@server.tool()
async def test_input_required_result_elicitation(ctx: Context) -> str | InputRequiredResult:
    """Greets a user, once it knows the name."""
    if "user_name" not in answers(ctx):
        return needs(user_name=asking("What is your name?", "name"))
    return f"Hello, {_filled_in(answers(ctx)['user_name'], 'name') or 'stranger'}!"


@server.tool()
async def test_input_required_result_sampling(ctx: Context) -> str | InputRequiredResult:
    """Says what the client's model knows of France."""
    answer = answers(ctx).get("capital_question")
    if answer is None:
        return needs(capital_question=sampling("What is the capital of France?"))
    known = isinstance(answer, CreateMessageResult) and answer.content.type == "text"
    return f"The model says: {answer.content.text if known else 'nothing'}"


@server.tool()
async def test_input_required_result_list_roots(ctx: Context) -> str | InputRequiredResult:
    """Counts the client's roots."""
    answer = answers(ctx).get("client_roots")
    if answer is None:
        return needs(client_roots=ListRootsRequest())
    return f"Roots of the client: {len(answer.roots) if isinstance(answer, ListRootsResult) else 0}"


@server.tool()
async def test_input_required_result_request_state(ctx: Context) -> str | InputRequiredResult:
    """Wants a confirmation, and what it gave to be kept."""
    if "confirm" in answers(ctx) and ctx.request_state == "kept":
        return "state-ok: confirmed"
    return needs("kept", confirm=asking("Please confirm", "ok", "boolean"))


@server.tool()
async def test_input_required_result_tampered_state(ctx: Context) -> str | InputRequiredResult:
    """Takes back what it gave to be kept, and nothing else."""
    if ctx.request_state is None:
        return needs("as it was given", confirm=asking("Please confirm", "ok", "boolean"))
    return f"state-ok: {ctx.request_state}"


@server.tool()
async def test_input_required_result_multiple_inputs(ctx: Context) -> str | InputRequiredResult:
    """Asks for three things at once."""
    questions: dict[str, InputRequest] = {
        "user_name": asking("What is your name?", "name"),
        "greeting": sampling("Generate a greeting"),
        "client_roots": ListRootsRequest(),
    }
    return "All of it is here." if questions.keys() <= answers(ctx).keys() else needs("three things", **questions)


STEPS: Final = (("step1", "name", "What is your name?"), ("step2", "color", "What is your favorite color?"))


@server.tool()
async def test_input_required_result_multi_round(ctx: Context) -> str | InputRequiredResult:
    """Asks one thing after the other, and keeps nothing itself."""
    known: list[str] = json.loads(ctx.request_state) if ctx.request_state else []
    if ctx.request_state and (step := STEPS[len(known)])[0] in answers(ctx):
        known.append(_filled_in(answers(ctx)[step[0]], step[1]))
    if len(known) == len(STEPS):
        return f"{known[0]} likes {known[1]}."
    name, member, question = STEPS[len(known)]
    return needs(json.dumps(known), **{name: asking(question, member)})


@server.tool()
async def test_input_required_result_capabilities(ctx: Context) -> InputRequiredResult:
    """Asks only for what the client has said that it can do."""
    able = ctx.client_capabilities
    questions: dict[str, InputRequest] = {}
    if able is None or able.sampling is not None:
        questions["sample"] = sampling("Say hello")
    if able is None or able.elicitation is not None:
        questions["ask"] = asking("What is your name?", "name")
    return needs("asked", **questions)


@server.tool()
async def test_missing_capability(ctx: Context) -> str:
    """Works for clients that can sample."""
    able = ctx.session.client_capabilities
    if able is None or able.sampling is None:
        lacking: dict[str, Any] = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(code=MISSING_REQUIRED_CLIENT_CAPABILITY, message="This takes a model", data=lacking)
    return "This client can sample."


# --- resources, prompts, and the rest ---------------------------------------------------------------------------------


@server.resource("test://static-text")
def static_text() -> str:
    """A text."""
    return "This is the content of the static text resource."


@server.resource("test://static-binary")
def static_binary() -> bytes:
    """An image."""
    return base64.b64decode(PIXEL)


@server.resource("test://watched-resource")
def watched() -> str:
    """Can be subscribed to."""
    return "Nothing has changed."


@server.resource("test://template/{id}/data")
def numbered(id: str) -> str:
    """One of as many as there are numbers."""
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


def _said(*content: Any) -> list[UserMessage]:
    return [UserMessage(role="user", content=each) for each in content]


@server.prompt()
def test_simple_prompt() -> list[UserMessage]:
    """Takes no arguments."""
    return _said(text("This is a simple prompt for testing."))


@server.prompt()
def test_prompt_with_arguments(arg1: str, arg2: str) -> list[UserMessage]:
    """Takes two arguments."""
    return _said(text(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"))


@server.prompt()
def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
    """Has a resource in it."""
    return _said(document(resourceUri, "text/plain", "Embedded resource content for testing."), text("What is this?"))


@server.prompt()
def test_prompt_with_image() -> list[UserMessage]:
    """Has an image in it."""
    return _said(IMAGE, text("What is this?"))


@server.prompt()
async def test_input_required_result_prompt(ctx: Context) -> list[UserMessage] | InputRequiredResult:
    """Is about what its user says first."""
    if "user_context" not in answers(ctx):
        return needs(user_context=asking("What is it about?", "context"))
    return _said(text(f"It is about {_filled_in(answers(ctx)['user_context'], 'context')}."))


@server.completion()  # type: ignore[no-untyped-call, untyped-decorator]
async def completed(
    ref: PromptReference | ResourceTemplateReference, argument: CompletionArgument, context: CompletionContext | None
) -> Completion:
    known = [each for each in ("paris", "park", "party") if each.startswith(argument.value)]
    return Completion(values=known, total=len(known), has_more=False)


async def _taken(ctx: Any, params: Any) -> EmptyResult:
    return EmptyResult()


for _method, _params in (
    ("logging/setLevel", SetLevelRequestParams),
    ("resources/subscribe", SubscribeRequestParams),
    ("resources/unsubscribe", UnsubscribeRequestParams),
):
    server._lowlevel_server.add_request_handler(_method, _params, _taken)


# --- the process ------------------------------------------------------------------------------------------------------


def main() -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    app = server.streamable_http_app(event_store=Log(), retry_interval=100)
    # h11 takes the spaces around a header's value away, as HTTP wants it, and httptools leaves those behind it.
    config = uvicorn.Config(app, log_config=None, http="h11", timeout_graceful_shutdown=1)
    sys.stdout.write(f"{READY}http://localhost:{port}/mcp\n")
    sys.stdout.flush()
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
