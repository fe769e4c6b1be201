# Which models may be asked: those listed for the agent's tenant, and those listed for any of its roles
# (docs/policy-library.md). Without a list there is no model.
package library.models

import rego.v1

# Listing models shows nothing that is worth hiding, and names none.
deny := {"decision": "DENY", "explanation": refusal} if {
	not elsewhere
	not input.call.operation == "models"
	not granted
}

elsewhere if input.call.kind in {"tool", "message", "environment"}

granted if {
	input.call.target in names
} else if {
	is_string(input.call.target)
	some name in names
	contains(name, "*")
	glob.match(name, null, input.call.target)
}

names contains name if some name in data.library_settings.models.tenants[input.agent.tenant]

names contains name if {
	some role in input.agent.roles
	some name in data.library_settings.models.roles[role]
}

refusal := concat("", ["The model ", input.call.target, " is not allowed here. ", instead]) if {
	is_string(input.call.target)
} else := concat("", ["Name a model. ", instead])

instead := concat("", ["Use one of: ", concat(", ", sort(names)), "."]) if {
	count(names) > 0
} else := "No model is; ask the operator for one."
