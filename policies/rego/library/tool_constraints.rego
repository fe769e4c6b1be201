# What the arguments of a tool may be: rules per tool, operation and parameter (docs/policy-library.md). It only narrows
# what something else has granted: a tool without rules is not its business.
package library.tool_constraints

import rego.v1

deny := {"decision": "DENY", "explanation": concat(" ", sort(violations))} if {
	count(violations) > 0
}

rules := found if {
	found := data.library_settings.tool_constraints[input.call.target][input.call.operation]
} else := data.library_settings.tool_constraints[input.call.target]["*"]

arguments := input.call.arguments if {
	whole
} else := {}

violations contains "Send the parameters as a JSON object." if {
	rules
	not whole
}

whole if is_object(input.call.arguments)

violations contains concat("", ["Leave out ", name, "."]) if {
	rules.only == true
	some name, _ in arguments
	not name in named
}

named contains segments(pointer)[0] if some pointer, _ in rules.parameters

violations contains concat("", ["Give ", pointer, "."]) if {
	some pointer, rule in rules.parameters
	rule.required == true
	count(given(pointer)) == 0
}

violations contains concat("", [pointer, " must be ", wrong, "."]) if {
	some pointer, rule in rules.parameters
	some value in given(pointer)
	some kind, limit in rule
	wrong := fault(kind, limit, value)
}

# A parameter is named plainly, or by a pointer into what it holds; `*` is every key or element at its level.
segments(pointer) := split(trim_prefix(pointer, "/"), "/") if {
	startswith(pointer, "/")
} else := [pointer]

# The values that a pointer leads to. A null is a value like any other.
given(pointer) := [value |
	walk(arguments, [path, value])
	follows(segments(pointer), path)
]

follows(wanted, path) if {
	count(path) == count(wanted)
	every position, segment in wanted {
		leads(segment, path[position])
	}
}

leads(segment, step) if {
	segment == "*"
} else if {
	segment == step
} else if {
	is_number(step)
	segment == format_int(step, 10)
}

# What a value breaks, in words; undefined where it keeps the rule. A value of another type is outside every limit.
fault("type", wanted, value) := concat(" ", ["of type", wanted]) if {
	not type_name(value) == wanted
}

fault("min", limit, value) := concat(" ", ["a number of at least", json.marshal(limit)]) if {
	not at_least(value, limit)
}

fault("max", limit, value) := concat(" ", ["a number of at most", json.marshal(limit)]) if {
	not at_most(value, limit)
}

fault("one_of", options, value) := concat(" ", ["one of", json.marshal(options)]) if {
	not value in options
}

fault("none_of", options, value) := concat(" ", ["none of", json.marshal(options)]) if {
	value in options
}

fault("pattern", pattern, value) := concat(" ", ["a text that matches", pattern]) if {
	not matches(value, pattern)
}

fault("not_pattern", pattern, value) := concat(" ", ["a text without", pattern]) if {
	not lacks(value, pattern)
}

fault("max_length", limit, value) := concat("", ["a text of at most ", json.marshal(limit), " characters"]) if {
	not shorter(value, limit)
}

fault("max_items", limit, value) := concat("", ["a list of at most ", json.marshal(limit), " items"]) if {
	not fewer(value, limit)
}

at_least(value, limit) if {
	is_number(value)
	value >= limit
}

at_most(value, limit) if {
	is_number(value)
	value <= limit
}

# All of the text, as in envelopes.
matches(value, pattern) if {
	is_string(value)
	regex.match(concat("", ["^(?:", pattern, ")$"]), value)
}

# Nowhere in the text.
lacks(value, pattern) if {
	is_string(value)
	not regex.match(pattern, value)
}

shorter(value, limit) if {
	is_string(value)
	count(value) <= limit
}

fewer(value, limit) if {
	is_array(value)
	count(value) <= limit
}
