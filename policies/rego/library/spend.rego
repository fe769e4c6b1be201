# Who has to agree when a budget runs low: above each threshold, in per cent of any budget that the call is paid from,
# its roles have to approve (docs/policy-library.md). Reads how full a budget is, never the exact money in it.
package library.spend

import rego.v1

deny := {
	"decision": "DENY",
	"explanation": "No budget measures this agent, so nothing may be spent. Tell its operator.",
} if {
	count(budgets) == 0
	not data.library_settings.spend.without_budget == "allow"
} else := {
	"decision": "DENY",
	"explanation": concat("", ["The budget ", concat(", ", full), " is used up. Continue when its window ends."]),
} if {
	count(full) > 0
}

hold := {
	"decision": "NEEDS_APPROVAL",
	"risk_level": "high",
	"required_approvals": approvers,
	"explanation": concat("", [
		"The budget ", concat(", ", low), " is almost used up, so ", concat(" and ", approvers),
		" must approve. Repeat the identical call after approval.",
	]),
} if {
	count(low) > 0
	not data.library.approval.given(approvers)
}

budgets := [budget | some budget in input.budgets]

# A budget that does not say how full it is counts as full: nothing is compared with what is not a number.
full := sort({name(budget) | some budget in budgets; not has_room(budget)})

has_room(budget) if {
	budget.state in {"ok", "warning"}
	is_number(budget.used_percent)
	budget.used_percent < 100
}

low := sort({name(budget) | some budget in budgets; some threshold in thresholds; above(budget, threshold)})

# The roles of every threshold that some budget is above.
approvers := sort({role |
	some threshold in thresholds
	some budget in budgets
	above(budget, threshold)
	some role in threshold.approvals
})

above(budget, threshold) if {
	is_number(budget.used_percent)
	budget.used_percent > threshold.above_percent
}

thresholds := given if {
	given := data.library_settings.spend.thresholds
} else := [{"above_percent": 80, "approvals": ["finance"]}]

name(budget) := concat("", [budget.node, " (", budget.window, ")"]) if {
	is_string(budget.node)
	is_string(budget.window)
} else := "of an unknown node"
