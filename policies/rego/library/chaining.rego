# What may follow once untrusted text has come in: after a tool whose results strangers write, a model may not be offered
# tools that send or pay (docs/policy-library.md). Reads the conversation that a call to a model carries; what a call to a
# tool does not carry, it cannot see.
package library.chaining

import rego.v1

settings := data.library_settings.chaining

deny := {"decision": "DENY", "explanation": concat("", [
	"Strangers may have written what is in here: ", concat(", ", sources), ". ",
	"Go on without ", concat(", ", offered), ", or in a new session.",
])} if {
	tainted
	count(offered) > 0
	not settings.approvals
}

hold := {
	"decision": "NEEDS_APPROVAL",
	"risk_level": "high",
	"required_approvals": settings.approvals,
	"explanation": concat("", [
		"Strangers may have written what is in here: ", concat(", ", sources), ". ",
		"Before ", concat(", ", offered), ", ", concat(" and ", settings.approvals),
		" must approve. Repeat the identical call after approval.",
	]),
} if {
	tainted
	count(offered) > 0
	settings.approvals
	not data.library.approval.given(settings.approvals)
}

tainted if count(sources) > 0

# --- what has come in ----------------------------------------------------------------------------------------------

sources := sort(((read_in_conversation | kept_elsewhere) | told))

# The tools whose results are in the conversation and may hold a stranger's words. A result that cannot be traced to the
# call that asked for it may be anyone's.
read_in_conversation contains concat("", ["the result of ", name]) if {
	input.call.kind == "llm"
	some name in results
	not trusted(name)
}

trusted(name) if {
	some pattern in settings.trusted
	glob.match(pattern, null, name)
}

messages := input.call.arguments.messages if is_array(input.call.arguments.messages)

items := input.call.arguments.input if is_array(input.call.arguments.input)

blocks(message) := message.content if is_array(message.content)

# OpenAI's chat completions.
results contains asked_by(object.get(message, "tool_call_id", null)) if {
	some message in messages
	message.role == "tool"
}

results contains name_of(message) if {
	some message in messages
	message.role == "function"
}

# Anthropic's messages.
results contains asked_by(object.get(block, "tool_use_id", null)) if {
	some message in messages
	some block in blocks(message)
	block.type == "tool_result"
}

# Tools that the model's own server runs: their results say what they are.
results contains block.type if {
	some message in messages
	some block in blocks(message)
	is_string(block.type)
	endswith(block.type, "_tool_result")
}

# OpenAI's responses.
results contains asked_by(object.get(item, "call_id", null)) if {
	some item in items
	is_string(item.type)
	endswith(item.type, "_output")
	not item.type == "computer_call_output"
}

results contains item.type if {
	some item in items
	is_string(item.type)
	regex.match(`^(web_search_call|file_search_call|mcp_call|code_interpreter_call|computer_call_output)$`, item.type)
}

asked_by(id) := name if {
	names := [name | some name in calls[id]]
	count(names) == 1
	name := names[0]
	is_string(name)
} else := "an unknown tool"

# The tools that were called, by the id of the call. More than one name for an id is no name.
calls[id] contains call.function.name if {
	some message in messages
	some call in message.tool_calls
	id := call.id
}

calls[id] contains block.name if {
	some message in messages
	some block in blocks(message)
	block.type == "tool_use"
	id := block.id
}

calls[id] contains item.name if {
	some item in items
	item.type in {"function_call", "custom_tool_call"}
	id := item.call_id
}

# A conversation that the model's server keeps cannot be read here.
kept_elsewhere contains "a conversation kept elsewhere" if {
	input.call.kind == "llm"
	is_object(input.call.arguments)
	some field in ["previous_response_id", "conversation"]
	object.get(input.call.arguments, field, null) != null
}

# What someone else has noted of this session, for calls to tools: {session: true}.
told contains concat(" ", ["session", input.call.session]) if {
	data.tainted_sessions[input.call.session] == true
}

told contains "a session without a name" if {
	settings.require_session == true
	not named
	not input.call.kind == "llm"
}

named if is_string(input.call.session)

# --- what could be done with it ------------------------------------------------------------------------------------

offered := sort({name | some name in tools; risky(name)})

risky(name) if {
	some pattern in settings.risky
	glob.match(pattern, null, name)
} else if {
	name == "a tool without a name"
}

tools contains name_of(tool) if {
	input.call.kind == "llm"
	some tool in input.call.arguments.tools
}

tools contains name_of(function) if {
	input.call.kind == "llm"
	some function in input.call.arguments.functions
}

# Servers whose tools the model may call without their being listed here.
tools contains "mcp" if {
	input.call.kind == "llm"
	count(input.call.arguments.mcp_servers) > 0
}

tools contains concat("/", [input.call.target, input.call.operation]) if {
	not input.call.kind == "llm"
}

name_of(tool) := tool.function.name if {
	is_string(tool.function.name)
} else := tool.name if {
	is_string(tool.name)
} else := tool.type if {
	is_string(tool.type)
} else := "a tool without a name"
