# May this call happen? Every agent has an envelope, `data.envelopes[agent]`: what it may use, and how (docs/policy.md).
# What an envelope does not grant is refused; what it grants at high risk waits for people, unless the agent's autonomy
# tier is 3 or more.
#
# A body about one kind of call begins by asking for it, and parameters are named rather than computed where they can be:
# so it shows that prompts are never read, and decisions on calls to models are made once and used again.
package weighbridge

import rego.v1

default decision := {
	"decision": "DENY",
	"explanation": "Nothing in the agent's envelope speaks of calls of this kind. Do not repeat the call.",
}

# The common case first: an active agent uses what its envelope grants without conditions. It allows nothing that the
# rules below would not allow; it says it in one body because every further rule that is asked costs microseconds.
decision := {"decision": "ALLOW", "risk_level": "low", "explanation": "Within the agent's envelope."} if {
	input.call.kind == "llm"
	own := data.envelopes[input.agent.name]
	own.models[input.call.target] == {}
	input.agent.state == "active"
	not own.daily_cost_cap_usd

	# Without a limit there still is a number to compare with; who asks for more is judged below.
	limit := object.get(own, "max_output_tokens", 1000000000)
	tokens := object.get(input.call, ["arguments", "max_tokens"], 0)
	tokens >= 0
	tokens <= limit
	completion_tokens := object.get(input.call, ["arguments", "max_completion_tokens"], 0)
	completion_tokens >= 0
	completion_tokens <= limit
	output_tokens := object.get(input.call, ["arguments", "max_output_tokens"], 0)
	output_tokens >= 0
	output_tokens <= limit
} else := of_no_call if {
	input.call.kind != "llm"
	input.call.phase
} else := {"decision": "ALLOW", "risk_level": "low", "explanation": "Within the agent's envelope."} if {
	input.call.kind != "llm"
	own := data.envelopes[input.agent.name]
	own[section][input.call.target].operations[input.call.operation] == {}
	input.agent.state == "active"
	not own.daily_cost_cap_usd
} else := {"decision": "DENY", "explanation": refusal} if {
	refusal
} else := {"decision": "ALLOW", "risk_level": risk, "explanation": "Within the agent's envelope."} if {
	grant
	unattended
} else := {
	"decision": "NEEDS_APPROVAL",
	"risk_level": risk,
	"required_approvals": approvers,
	"explanation": concat("", [
		what, " is a ", risk, "-risk action for ", agent, ", held for the approval of ", concat(" and ", approvers),
		". Repeat the identical call after approval.",
	]),
} if {
	grant
}

# --- what is asked where no call is to be made ---------------------------------------------------------------------

# Lists of tools show what the envelope grants, with whatever parameters and at whatever risk. No tool has the empty
# name: by it the gateway tells a policy that speaks of lists from one that says the same of everything. What tools
# answer is not looked at here: who may call a tool may see what it says.
of_no_call := {"decision": "ALLOW", "risk_level": "low", "explanation": "Within the agent's envelope."} if {
	input.call.phase == "list"
	input.agent.state == "active"
	name := object.get(input.call, ["arguments", "name"], "")
	name != ""
	some granted in [name, "*"]
	operations[granted]
} else := {"decision": "ALLOW", "risk_level": "low", "explanation": "Of a call that was allowed."} if {
	input.call.phase == "result"
} else := {"decision": "DENY", "explanation": "Not in the agent's envelope."}

agent := input.agent.name

envelope := data.envelopes[input.agent.name]

# --- what the envelope grants: its part that speaks of this call ---------------------------------------------------

# Asking which models there are, and counting tokens, costs nothing and shows nothing.
grant := {} if {
	envelope
	input.call.kind == "llm"
	input.call.operation in {"models", "count_tokens"}
} else := found if {
	input.call.kind == "llm"
	found := envelope.models[input.call.target]
} else := {} if {
	input.call.kind == "llm"
	some pattern in envelope.model_patterns
	glob.match(pattern, null, input.call.target)
} else := found if {
	input.call.kind != "llm"
	found := operations[input.call.operation]
} else := found if {
	input.call.kind != "llm"
	found := operations["*"]
}

section := {"tool": "allowed_tools", "message": "allowed_agents", "environment": "allowed_environments"}[input.call.kind]

operations := envelope[section][input.call.target].operations

# --- who decides ---------------------------------------------------------------------------------------------------

default risk := "low"

risk := grant.risk

unattended if {
	risk == "low"
} else if {
	risk == "medium"
} else if {
	is_number(input.agent.autonomy_tier)
	input.agent.autonomy_tier >= 3
} else if {
	input.approval.id
	every role in approvers {
		role in input.approval.roles
	}
}

approvers := found if {
	found := grant.required_approvals
} else := found if {
	found := envelope.required_approvals
} else := ["operator"]

# --- why not: the first reason, in words that the agent's model can act on -----------------------------------------

refusal := concat("", ["The agent ", agent, " is not active. Stop here; its operator has to resume it."]) if {
	not input.agent.state == "active"
} else := not_granted if {
	not grant
} else := concat(" ", violations) if {
	count(violations) > 0
} else := too_expensive

not_granted := concat("", [what, " is not in the envelope of ", agent, ". ", instead]) if {
	envelope
} else := concat("", ["The agent ", agent, " has no envelope, so it may do nothing. Ask its operator for one."])

what := concat(" ", ["The model", input.call.target]) if {
	input.call.kind == "llm"
} else := concat("", [input.call.operation, " on ", input.call.target])

instead := concat("", [
	"Use one of: ", concat(", ", array.concat(
		[model | some model, _ in envelope.models],
		[pattern | some pattern in envelope.model_patterns],
	)),
	".",
]) if {
	input.call.kind == "llm"
} else := concat("", ["There it may use: ", concat(", ", object.keys(operations)), "."]) if {
	operations
} else := concat("", ["It may use: ", concat(", ", object.keys(envelope[section])), "."]) if {
	envelope[section]
} else := "Do without it."

violations := found if {
	input.call.kind == "llm"
	found := too_long
} else := found if {
	input.call.kind != "llm"
	found := broken
}

# --- the length of answers, whichever of its names the protocol uses -----------------------------------------------

too_long := [concat("", ["Set ", field, " to at most ", format_int(limit, 10), "."]) |
	limit := object.get(grant, "max_output_tokens", object.get(envelope, "max_output_tokens", null))
	limit != null
	some [field, asked] in lengths
	asked != null
	not at_most(asked, limit)
]

lengths := [
	["max_tokens", object.get(input.call, ["arguments", "max_tokens"], null)],
	["max_completion_tokens", object.get(input.call, ["arguments", "max_completion_tokens"], null)],
	["max_output_tokens", object.get(input.call, ["arguments", "max_output_tokens"], null)],
]

# --- the parameters of tools: each kind of constraint is an object {parameter: limit} ------------------------------

# Null when there are none, so that every engine says the same of a call without any.
arguments := object.get(input.call, "arguments", null)

broken contains concat("", ["Give ", name, "."]) if {
	some name in grant.required
	not present(name)
}

broken contains "Send the parameters as a JSON object." if {
	not is_object(arguments)
	some kind in ["parameters", "max", "min", "one_of", "pattern", "max_length"]
	grant[kind]
}

broken contains concat("", ["Leave out ", name, "."]) if {
	is_object(arguments)
	grant.parameters
	some name, _ in arguments
	not name in grant.parameters
}

broken contains concat("", ["Set ", name, " to at most ", json.marshal(limit), "."]) if {
	some name, limit in grant.max
	given := arguments[name]
	not at_most(given, limit)
}

broken contains concat("", ["Set ", name, " to at least ", json.marshal(limit), "."]) if {
	some name, limit in grant.min
	given := arguments[name]
	not at_least(given, limit)
}

broken contains concat("", ["Set ", name, " to one of ", json.marshal(options), "."]) if {
	some name, options in grant.one_of
	given := arguments[name]
	not given in options
}

broken contains concat("", ["Let ", name, " match ", pattern, "."]) if {
	some name, pattern in grant.pattern
	given := arguments[name]
	not matches(given, pattern)
}

broken contains concat("", ["Shorten ", name, " to ", format_int(limit, 10), " characters."]) if {
	some name, limit in grant.max_length
	given := arguments[name]
	not fits(given, limit)
}

present(name) if arguments[name] != null

# A value of another type is outside every limit: in Rego a null is less than any number, and any text is more.
at_most(given, limit) if {
	is_number(given)
	given <= limit
}

at_least(given, limit) if {
	is_number(given)
	given >= limit
}

matches(given, pattern) if {
	is_string(given)
	regex.match(concat("", ["^(?:", pattern, ")$"]), given)
}

fits(given, limit) if {
	is_string(given)
	count(given) <= limit
}

# --- the daily cost cap: counted in millionths of a dollar, because fractions of it do not add up exactly ----------

# Money is looked at behind the cap and nowhere else: decisions on agents without one are made once and used again.
too_expensive := message if {
	cap := data.envelopes[input.agent.name].daily_cost_cap_usd
	message := over(cap)
}

over(cap) := "The envelope has a daily cost cap, but no budget with window day measures this agent. Tell its operator." if {
	count(days) == 0
} else := concat("", ["The daily cost cap of ", json.marshal(cap), " USD is reached. Continue tomorrow."]) if {
	not at_most(sum(days) + micros(object.get(input.call, "estimated_cost_usd", 0)), micros(cap))
}

# What the agent has spent and promised today.
days := [spent |
	some budget in input.budgets
	budget.window == "day"
	budget.node == concat("/", [input.agent.tenant, agent])
	spent := micros(budget.posted_usd) + micros(budget.pending_usd)
]

micros(dollars) := round(dollars * 1000000)
