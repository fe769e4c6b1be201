# When calls may happen: on the days and between the hours of the agent's tenant, by its own clock
# (docs/policy-library.md). Reads the time, so no decision that asks this module is ever reused.
package library.working_hours

import rego.v1

# Who may approve a call outside the hours holds it instead of refusing it.
deny := {"decision": "DENY", "explanation": concat(" ", [when, "Try again then."])} if {
	not open
	not hours.approvals
}

hold := {
	"decision": "NEEDS_APPROVAL",
	"risk_level": "medium",
	"required_approvals": hours.approvals,
	"explanation": concat("", [
		when, " Until then ", concat(" and ", hours.approvals),
		" must approve. Repeat the identical call after approval.",
	]),
} if {
	not open
	hours.approvals
	not data.library.approval.given(hours.approvals)
}

hours := found if {
	found := data.library_settings.working_hours.tenants[input.agent.tenant]
} else := data.library_settings.working_hours.everyone

# Hours begin and end on one day; those that pass midnight are refused when they are loaded.
open if {
	weekday in hours.days
	clock >= hours.from
	clock < hours.to
}

weekday := lower(time.weekday([input.time.unix_ns, hours.time_zone]))

# As the hours are written, so that texts can be compared.
clock := sprintf("%02d:%02d", [reading[0], reading[1]]) if {
	reading := time.clock([input.time.unix_ns, hours.time_zone])
}

when := concat("", [
	"This agent works from ", hours.from, " to ", hours.to, " (", hours.time_zone, ") on ",
	concat(", ", hours.days), ".",
]) if {
	hours
} else := "No working hours are set for this agent, so it has none."
