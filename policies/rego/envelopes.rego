# What is wrong with the envelopes themselves, asked once when policy and data are loaded: a word misspelt in an
# envelope would otherwise be a limit that limits nothing.
package weighbridge

import rego.v1

problems contains "envelopes is not an object {agent: envelope}" if {
	data.envelopes
	not is_object(data.envelopes)
}

problems contains sprintf("envelopes.%s: %s", [name, wrong]) if {
	some name, whole in envelopes
	wrong := fault_within(envelope_fields, whole)
}

problems contains sprintf("envelopes.%s.models.%s: %s", [name, model, wrong]) if {
	count(faulty_models) > 0
	some name, whole in envelopes
	some model, granted in objects(whole, "models")
	wrong := fault_within(model_fields, granted)
}

problems contains sprintf("envelopes.%s.%s.%s: %s", [name, kind, target, wrong]) if {
	some name, whole in envelopes
	some kind in ["allowed_tools", "allowed_agents", "allowed_environments"]
	some target, at in objects(whole, kind)
	wrong := fault_within(target_fields, at)
}

problems contains sprintf("envelopes.%s.%s.%s.operations.%s: %s", [name, kind, target, operation, wrong]) if {
	count(faulty_operations) > 0
	some name, whole in envelopes
	some kind in ["allowed_tools", "allowed_agents", "allowed_environments"]
	some target, at in objects(whole, kind)
	some operation, granted in objects(at, "operations")
	wrong := fault_within(operation_fields, granted)
}

# Many envelopes grant the same: each grant is looked at once, and where it stands is only looked for when it is wrong.
faulty_models := {granted |
	some granted in {each | some whole in envelopes; some each in whole.models}
	fault_within(model_fields, granted)
}

faulty_operations := {granted |
	some granted in operation_grants
	fault_within(operation_fields, granted)
}

operation_grants := {granted |
	some whole in envelopes
	some kind in ["allowed_tools", "allowed_agents", "allowed_environments"]
	some at in whole[kind]
	some granted in at.operations
}

envelopes := data.envelopes if {
	is_object(data.envelopes)
}

# The object at a field; nothing to look at where there is none, because that is a fault of its own.
objects(whole, field) := whole[field] if {
	is_object(whole)
	is_object(whole[field])
}

# The fields there are, and what each may hold.
envelope_fields := {
	"models": "object",
	"model_patterns": "texts",
	"max_output_tokens": "number",
	"allowed_tools": "object",
	"allowed_agents": "object",
	"allowed_environments": "object",
	"daily_cost_cap_usd": "number",
	"required_approvals": "texts",
}

model_fields := {"risk": "risk", "max_output_tokens": "number", "required_approvals": "texts"}

target_fields := {"operations": "object"}

operation_fields := {
	"risk": "risk",
	"required_approvals": "texts",
	"parameters": "texts",
	"required": "texts",
	"max": "numbers",
	"min": "numbers",
	"one_of": "lists",
	"pattern": "patterns",
	"max_length": "numbers",
}

fault_within(fields, granted) := "is not an object" if {
	not is_object(granted)
} else := concat("; ", wrong) if {
	wrong := [concat(": ", [field, fault(fields, field)]) |
		some field, value in granted
		not holds(object.get(fields, field, "unknown"), value)
	]
	count(wrong) > 0
}

fault(fields, field) := concat("", ["is not ", {
	"object": "an object",
	"number": "a number, 0 or more",
	"texts": "a list of texts with at least one",
	"risk": "one of low, medium, high, critical",
	"numbers": "an object {parameter: number}",
	"lists": "an object {parameter: [value, ...]}",
	"patterns": "an object {parameter: regular expression}",
}[fields[field]]]) if {
	fields[field]
} else := concat("", ["there is no such field; there are ", concat(", ", object.keys(fields))])

holds("object", value) if is_object(value)

holds("number", value) if {
	is_number(value)
	value >= 0
}

holds("risk", value) if value in ["low", "medium", "high", "critical"]

holds("texts", value) if {
	is_array(value)
	count(value) > 0
	every text in value {
		is_string(text)
	}
}

holds("numbers", value) if {
	is_object(value)
	every number in value {
		is_number(number)
	}
}

holds("lists", value) if {
	is_object(value)
	every list in value {
		is_array(list)
	}
}

holds("patterns", value) if {
	is_object(value)
	every pattern in value {
		is_string(pattern)
		regex.is_valid(pattern)
	}
}
