# Who has to agree when a budget runs low: above each threshold, in per cent of any budget that the call is paid from,
# its roles have to approve (docs/policy-library.md). Reads how full a budget is, never the exact money in it. Budgets
# that only warn never refuse here either, and those that only count are not looked at.
package library.spend

import rego.v1

deny := {
	"decision": "DENY",
	"explanation": "No budget measures this agent, so nothing may be spent. Tell its operator.",
} if {
	not measured
	not data.library_settings.spend.without_budget == "allow"
} else := {
	"decision": "DENY",
	"explanation": concat("", ["The budget ", concat(", ", sort(full)), " is used up. Continue when its window ends."]),
} if {
	count(full) > 0
}

hold := {
	"decision": "NEEDS_APPROVAL",
	"risk_level": "high",
	"required_approvals": approvers,
	"explanation": concat("", [
		"The budget ", concat(", ", sort(low)), " is almost used up, so ", concat(" and ", approvers),
		" must approve. Repeat the identical call after approval.",
	]),
} if {
	count(low) > 0
	not data.library.approval.given(approvers)
}

measured if is_object(input.budgets[_])

# A budget that does not say how full it is counts as full: nothing is compared with what is not a number.
full contains name(i) if {
	some i
	is_object(input.budgets[i])
	not i in with_room
	not i in lenient
}

lenient contains i if {
	some i
	input.budgets[i].mode in {"soft", "shadow"}
}

with_room contains i if {
	some i
	input.budgets[i].state in {"ok", "warning"}
	is_number(input.budgets[i].used_percent)
	input.budgets[i].used_percent < 100
}

low contains name(crossing[0]) if some crossing in crossings

# The roles of every threshold that some budget is above.
approvers := sort({role |
	some crossing in crossings
	some role in crossing[1]
})

crossings contains [i, threshold.approvals] if {
	some i
	is_number(input.budgets[i].used_percent)
	not input.budgets[i].mode == "shadow"
	some threshold in thresholds
	input.budgets[i].used_percent > threshold.above_percent
}

thresholds := given if {
	given := data.library_settings.spend.thresholds
} else := [{"above_percent": 80, "approvals": ["finance"]}]

name(i) := concat("", [input.budgets[i].node, " (", input.budgets[i].window, ")"]) if {
	is_string(input.budgets[i].node)
	is_string(input.budgets[i].window)
} else := "of an unknown node"
