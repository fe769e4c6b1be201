# What is wrong with `data.library_settings`, asked once when policy and data are loaded: a word misspelt in a setting
# would otherwise be a limit that limits nothing.
package library.settings

import rego.v1

settings := data.library_settings if {
	is_object(data.library_settings)
}

problems contains "library_settings is not an object {module: settings}" if {
	data.library_settings
	not is_object(data.library_settings)
}

problems contains sprintf("library_settings.%s: there is no such module; there are %s", [module, names]) if {
	some module, _ in settings
	not module in object.keys(shapes)
	names := concat(", ", sort(object.keys(shapes)))
}

problems contains sprintf("library_settings.%s%s", [module, wrong]) if {
	some module, shape in shapes
	some wrong in faults(shape, settings[module])
}

problems contains sprintf("library_settings.models.%s: is not an object {name: [model, ...]}", [whose]) if {
	some whose, lists in inside(settings, "models")
	not lists_of_texts(lists)
}

problems contains "library_settings.egress.tenants: is not an object {tenant: [host, ...]}" if {
	tenants := settings.egress.tenants
	not lists_of_texts(tenants)
}

problems contains sprintf("library_settings.egress: `%s` is no host; write example.com, *.example.com or example.com:8443", [host]) if {
	some host in egress_hosts
	not regex.match(`^(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(:[0-9]{1,5})?$`, host)
}

problems contains sprintf("library_settings.spend.thresholds[%d]: is not {above_percent: 80, approvals: [role, ...]}", [position]) if {
	some position, threshold in inside(inside(settings, "spend"), "thresholds")
	not is_threshold(threshold)
}

problems contains sprintf("library_settings.working_hours.%s%s", [whose, wrong]) if {
	some whose, given in all_hours
	some wrong in faults(hours_shape, given)
}

problems contains sprintf("library_settings.working_hours.%s: has no %s", [whose, field]) if {
	some whose, given in all_hours
	is_object(given)
	some field in ["days", "from", "to", "time_zone"]
	not field in object.keys(given)
}

problems contains sprintf("library_settings.working_hours.%s: must begin before it ends, on one day", [whose]) if {
	some whose, given in all_hours
	not ordered(given)
}

problems contains sprintf("library_settings.working_hours.%s: `%s` is no day of the week", [whose, day]) if {
	some whose, given in all_hours
	some day in inside(given, "days")
	not day in {"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"}
}

problems contains sprintf("library_settings.tool_constraints.%s.%s%s", [target, operation, wrong]) if {
	some target, operations in inside(settings, "tool_constraints")
	some operation, rules in each(operations)
	some wrong in faults({"only": "boolean", "parameters": "object"}, rules)
}

problems contains sprintf("library_settings.tool_constraints.%s: is not an object {operation: rules}", [target]) if {
	some target, operations in inside(settings, "tool_constraints")
	not is_object(operations)
}

problems contains sprintf("library_settings.tool_constraints.%s.%s.%s%s", [target, operation, parameter, wrong]) if {
	some target, operations in inside(settings, "tool_constraints")
	some operation, rules in each(operations)
	some parameter, rule in inside(rules, "parameters")
	some wrong in faults(rule_shape, rule)
}

# What a field holds, and what there is to look at; nothing where it is another thing, because that is a fault of its own.
inside(whole, field) := each(object.get(whole, field, [])) if {
	is_object(whole)
} else := []

each(whole) := whole if {
	is_object(whole)
} else := whole if {
	is_array(whole)
} else := []

ordered(given) if given.from < given.to

all_hours["everyone"] := settings.working_hours.everyone

all_hours[name] := hours if {
	some tenant, hours in inside(inside(settings, "working_hours"), "tenants")
	name := concat(".", ["tenants", tenant])
}

egress_hosts contains host if {
	some host in inside(inside(settings, "egress"), "hosts")
	is_string(host)
}

egress_hosts contains host if {
	some _, hosts in inside(inside(settings, "egress"), "tenants")
	some host in each(hosts)
	is_string(host)
}

# The fields there are, and what each may hold.
shapes := {
	"chaining": {"trusted": "texts", "risky": "texts", "approvals": "texts", "require_session": "boolean"},
	"egress": {"hosts": "texts", "tenants": "object", "parameters": "lower"},
	"models": {"tenants": "object", "roles": "object"},
	"spend": {"thresholds": "array", "without_budget": "allow"},
	"tool_constraints": {"*": "object"},
	"working_hours": {"everyone": "object", "tenants": "object"},
}

hours_shape := {"days": "texts", "from": "hour", "to": "hour", "time_zone": "text", "approvals": "texts"}

rule_shape := {
	"type": "type",
	"required": "boolean",
	"min": "number",
	"max": "number",
	"one_of": "array",
	"none_of": "array",
	"pattern": "pattern",
	"not_pattern": "pattern",
	"max_length": "number",
	"max_items": "number",
}

faults(shape, given) := {": is not an object"} if {
	not is_object(given)
} else := {sprintf(".%s: %s", [field, wrong]) |
	some field, value in given
	wanted := object.get(shape, field, object.get(shape, "*", "nothing"))
	not holds(wanted, value)
	wrong := fault(shape, wanted)
}

fault(shape, wanted) := sprintf("there is no such field; there are %s", [concat(", ", sort(object.keys(shape)))]) if {
	wanted == "nothing"
} else := told[wanted]

told := {
	"object": "is not an object",
	"array": "is not a list",
	"number": "is not a number",
	"boolean": "is not true or false",
	"text": "is not a text",
	"texts": "is not a list of texts with at least one",
	"lower": "is not a list of names in lower case",
	"type": "is not one of null, boolean, number, string, array, object",
	"pattern": "is not a regular expression",
	"allow": "can only be `allow`",
	"hour": "is not a time of day like \"08:30\"",
}

holds("object", value) if is_object(value)

holds("array", value) if is_array(value)

holds("number", value) if is_number(value)

holds("boolean", value) if is_boolean(value)

holds("text", value) if is_string(value)

holds("allow", value) if value == "allow"

holds("type", value) if value in {"null", "boolean", "number", "string", "array", "object"}

holds("texts", value) if texts(value)

holds("lower", value) if {
	texts(value)
	every text in value {
		lower(text) == text
	}
}

holds("pattern", value) if {
	is_string(value)
	regex.is_valid(value)
}

holds("hour", value) if {
	is_string(value)
	regex.match(`^([01][0-9]|2[0-3]):[0-5][0-9]$|^24:00$`, value)
}

texts(value) if {
	is_array(value)
	count(value) > 0
	every text in value {
		is_string(text)
	}
}

lists_of_texts(value) if {
	is_object(value)
	every list in value {
		texts(list)
	}
}

is_threshold(value) if {
	is_number(value.above_percent)
	texts(value.approvals)
	count(value) == 2
}
