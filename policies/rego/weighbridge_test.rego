# Run with `weighbridge policy test`. Each test states one promise of the shipped policy.
package weighbridge_test

import rego.v1

envelopes := {
	"worker": {
		"models": {"small": {}, "big": {"risk": "high", "max_output_tokens": 1000}},
		"model_patterns": ["open-*"],
		"max_output_tokens": 100,
		"allowed_tools": {
			"github": {"operations": {
				"list": {},
				"pay": {
					"required": ["amount"],
					"parameters": ["amount", "currency", "note", "account"],
					"min": {"amount": 1},
					"max": {"amount": 50},
					"one_of": {"currency": ["EUR", "USD"]},
					"pattern": {"account": "[A-Z]{2}[0-9]+"},
					"max_length": {"note": 10},
				},
				"erase": {"risk": "critical", "required_approvals": ["security", "finance"]},
			}},
			"crm": {"operations": {"*": {}}},
		},
		"allowed_agents": {"planner": {"operations": {"SendMessage": {}}}},
		"allowed_environments": {"grid": {"operations": {"step": {}}}},
	},
	"saver": {"models": {"small": {}}, "daily_cost_cap_usd": 0.3},
}

agent(name, tier) := {"name": name, "tenant": "acme", "roles": [], "autonomy_tier": tier, "state": "active"}

llm(model, arguments) := {"agent": agent("worker", 1), "call": {
	"kind": "llm", "protocol": "openai", "operation": "chat", "target": model, "arguments": arguments,
}}

tool(target, operation, arguments) := {"agent": agent("worker", 1), "call": {
	"kind": "tool", "protocol": "mcp", "operation": operation, "target": target, "arguments": arguments,
}}

decided(document) := answer if {
	answer := data.weighbridge.decision with data.envelopes as envelopes with input as document
}

word(document) := decided(document).decision

listing(target, name) := {"agent": agent("worker", 1), "call": {
	"kind": "tool", "protocol": "mcp", "operation": "list", "target": target, "phase": "list",
	"arguments": {"method": "tools/list", "name": name},
}}

test_a_granted_tool_is_listed_whatever_its_parameters_and_its_risk if {
	every name in ["list", "pay", "erase"] {
		word(listing("github", name)) == "ALLOW"
	}
}

test_a_tool_that_is_not_granted_is_not_listed if {
	word(listing("github", "push")) == "DENY"
	word(listing("jira", "pay")) == "DENY"
}

test_all_tools_are_listed_where_all_are_granted_but_none_without_a_name if {
	word(listing("crm", "anything")) == "ALLOW"
	word(listing("crm", "")) == "DENY"
	word(listing("github", "")) == "DENY"
}

test_nothing_is_listed_for_an_agent_that_is_not_active if {
	stopped := object.union(listing("github", "pay"), {"agent": object.union(agent("worker", 1), {"state": "paused"})})
	word(stopped) == "DENY"
}

test_a_tool_called_list_is_called_by_its_own_grant_and_not_as_a_question_about_lists if {
	word(tool("github", "list", {"method": "tools/list", "name": "push"})) == "ALLOW"
	word(tool("crm", "list", {"method": "tools/list", "name": ""})) == "ALLOW"
	word(tool("jira", "list", {"method": "tools/list", "name": "pay"})) == "DENY"
}

test_what_a_tool_has_answered_may_be_seen if {
	asked := tool("github", "erase", {})
	word(object.union(asked, {"call": object.union(asked.call, {"phase": "result", "result": {}})})) == "ALLOW"
}

test_an_allowed_model_is_allowed if word(llm("small", {})) == "ALLOW"

test_a_model_that_fits_a_pattern_is_allowed if word(llm("open-7b/v1.5", {})) == "ALLOW"

test_another_model_is_denied_and_told_which_are_allowed if {
	answer := decided(llm("other", {}))
	answer.decision == "DENY"
	contains(answer.explanation, "Use one of: big, small, open-*.")
}

test_an_agent_without_envelope_is_denied if {
	word(object.union(llm("small", {}), {"agent": agent("stranger", 3)})) == "DENY"
}

test_an_agent_that_is_not_active_is_denied if {
	every state in ["paused", "quarantined", "", null, true] {
		word(object.union(llm("small", {}), {"agent": {"state": state}})) == "DENY"
	}
}

test_a_call_without_agent_is_denied if word({"call": llm("small", {}).call}) == "DENY"

test_no_input_is_denied if word({}) == "DENY"

test_listing_models_and_counting_tokens_is_allowed if {
	every operation in ["models", "count_tokens"] {
		word(object.union(llm("other", {}), {"call": {"operation": operation}})) == "ALLOW"
	}
}

test_asking_for_too_long_an_answer_is_denied_with_the_number_to_use if {
	every name in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
		decided(llm("small", {name: 101})).explanation == sprintf("Set %s to at most 100.", [name])
		word(llm("small", {name: "1"})) == "DENY"
		word(llm("small", {name: 100})) == "ALLOW"
		word(llm("small", {name: null})) == "ALLOW"
	}
}

test_the_limit_of_a_model_goes_before_that_of_the_envelope if {
	asking := object.union(llm("big", {"max_tokens": 1001}), {"agent": {"autonomy_tier": 3}})
	decided(asking).explanation == "Set max_tokens to at most 1000."
	word(object.union(asking, {"call": {"arguments": {"max_tokens": 1000}}})) == "ALLOW"
}

test_high_risk_needs_approval_below_tier_3 if {
	every tier in [0, 1, 2, null, "3"] {
		word(object.union(llm("big", {}), {"agent": {"autonomy_tier": tier}})) == "NEEDS_APPROVAL"
	}
	word(object.union(llm("big", {}), {"agent": {"autonomy_tier": 3}})) == "ALLOW"
}

test_high_risk_is_approved_by_all_who_are_asked if {
	call := tool("github", "erase", {})
	answer := decided(call)
	answer.decision == "NEEDS_APPROVAL"
	answer.risk_level == "critical"
	answer.required_approvals == ["security", "finance"]
	word(object.union(call, {"approval": {"id": "1", "roles": ["finance"]}})) == "NEEDS_APPROVAL"
	word(object.union(call, {"approval": {"id": "1", "roles": ["finance", "security"]}})) == "ALLOW"
	word(object.union(call, {"approval": null})) == "NEEDS_APPROVAL"
}

test_who_approves_defaults_to_the_operator if decided(llm("big", {})).required_approvals == ["operator"]

test_a_tool_and_an_operation_must_be_allowed if {
	word(tool("github", "list", {})) == "ALLOW"
	word(tool("crm", "GET /anything", {})) == "ALLOW"
	word(tool("jira", "list", {})) == "DENY"
	decided(tool("github", "drop", {})).explanation == concat("", [
		"drop on github is not in the envelope of worker. ",
		"There it may use: erase, list, pay.",
	])
}

test_parameters_within_their_constraints_are_allowed if {
	word(tool("github", "pay", {"amount": 50, "currency": "EUR", "account": "DE12", "note": "thanks"})) == "ALLOW"
}

test_parameters_outside_their_constraints_are_denied if {
	every given, why in {
		{}: "Give amount.",
		{"amount": null}: "Give amount. Set amount to at least 1. Set amount to at most 50.",
		{"amount": 51}: "Set amount to at most 50.",
		{"amount": 0}: "Set amount to at least 1.",
		{"amount": 5, "currency": "XXX"}: `Set currency to one of ["EUR","USD"].`,
		{"amount": 5, "currency": null}: `Set currency to one of ["EUR","USD"].`,
		{"amount": 5, "account": "xDE12"}: "Let account match [A-Z]{2}[0-9]+.",
		{"amount": 5, "account": "DE12\n"}: "Let account match [A-Z]{2}[0-9]+.",
		{"amount": 5, "account": ["DE12"]}: "Let account match [A-Z]{2}[0-9]+.",
		{"amount": 5, "note": "far too many words"}: "Shorten note to 10 characters.",
		{"amount": 5, "colour": "red"}: "Leave out colour.",
		{"amount": "5"}: "Set amount to at least 1. Set amount to at most 50.",
	} {
		decided(tool("github", "pay", given)).explanation == why
		word(tool("github", "pay", given)) == "DENY"
	}
}

test_arguments_that_are_no_object_are_denied_where_some_are_required if {
	every given in [null, [], "amount", 5] {
		not word(tool("github", "pay", given)) == "ALLOW"
	}
}

test_messages_and_environments_must_be_allowed if {
	message := {"agent": agent("worker", 1), "call": {"kind": "message", "operation": "SendMessage", "target": "planner"}}
	step := {"agent": agent("worker", 1), "call": {"kind": "environment", "operation": "step", "target": "grid"}}
	word(message) == "ALLOW"
	word(step) == "ALLOW"
	word(object.union(message, {"call": {"target": "other"}})) == "DENY"
	word(object.union(step, {"call": {"operation": "reset"}})) == "DENY"
	word(object.union(step, {"call": {"kind": "dance"}})) == "DENY"
}

spending(budgets) := object.union(llm("small", {}), {"agent": agent("saver", 3), "budgets": budgets})

day(posted, pending) := {"node": "acme/saver", "window": "day", "posted_usd": posted, "pending_usd": pending}

test_the_daily_cost_cap_counts_what_is_spent_and_promised if {
	word(spending([day(0.1, 0.2)])) == "ALLOW"
	word(spending([day(0.1, 0.200001)])) == "DENY"
	word(spending([day(0.31, 0)])) == "DENY"
	word(object.union(spending([day(0.1, 0.1)]), {"call": {"estimated_cost_usd": 0.11}})) == "DENY"
}

# The budgets as they are told: beside the agent's own for the day, those of its tenant and of the month.
told(posted, pending) := [
	{"node": "acme", "window": "month", "limit_usd": 500.0, "posted_usd": 499.9, "pending_usd": 0.0, "used_percent": 99, "state": "warning", "mode": "adaptive"},
	{"node": "acme/saver", "window": "month", "limit_usd": 9.0, "posted_usd": 8.5, "pending_usd": 0.2, "used_percent": 96, "state": "warning", "mode": "soft"},
	{"node": "acme/saver", "window": "day", "limit_usd": 5.0, "posted_usd": posted, "pending_usd": pending, "used_percent": 6, "state": "ok", "mode": "strict"},
]

test_the_daily_cost_cap_is_about_the_agents_own_budget_of_the_day if {
	word(spending(told(0.2, 0.05))) == "ALLOW"
	word(object.union(spending(told(0.2, 0.05)), {"call": {"estimated_cost_usd": 0.05}})) == "ALLOW"
	every document in [
		spending(told(0.2, 0.100001)),
		object.union(spending(told(0.2, 0.05)), {"call": {"estimated_cost_usd": 0.050001}}),
		object.union(spending(told(0.30, 0.00)), {"call": {"estimated_cost_usd": 0.0012}}),
	] {
		answer := decided(document)
		answer.decision == "DENY"
		answer.explanation == "The daily cost cap of 0.3 USD is reached. Continue tomorrow."
	}
}

test_money_stops_nobody_without_a_daily_cost_cap if {
	every pending in [0, 10000] {
		budgets := [object.union(day(9999.9, pending), {"node": "acme/worker", "used_percent": 100, "state": "exhausted"})]
		word(object.union(llm("small", {}), {"budgets": budgets, "call": {"estimated_cost_usd": 9000}})) == "ALLOW"
	}
}

test_a_daily_cost_cap_that_nothing_measures_is_denied if {
	every budgets in [
		[],
		[object.union(day(0, 0), {"window": "month"})],
		[object.union(day(0, 0), {"node": "acme"})],
		[object.remove(day(0, 0), ["posted_usd"])],
	] {
		answer := decided(spending(budgets))
		answer.decision == "DENY"
		contains(answer.explanation, "no budget with window day measures this agent")
	}
	word(object.remove(spending([]), ["budgets"])) == "DENY"
}

test_an_envelope_with_a_misspelt_field_is_a_problem if {
	count(data.weighbridge.problems) == 0 with data.envelopes as envelopes
	count(data.weighbridge.problems) == 1 with data.envelopes as {"worker": {"daily_cost_cap": 5}}
}
