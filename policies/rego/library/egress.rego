# Which hosts data may be sent to: every address in a call's arguments must lead to a listed one
# (docs/policy-library.md). What could be read in two ways is refused, whichever of them is harmless.
package library.egress

import rego.v1

deny := {"decision": "DENY", "explanation": refusal} if {
	not input.call.kind == "llm"
	count(refused) > 0
}

refusal := concat("", [
	"Data may not be sent to ", concat(", ", shown), ". ", instead,
])

instead := concat("", ["Allowed hosts: ", concat(", ", sort(hosts)), "."]) if {
	count(hosts) > 0
} else := "No host is allowed; ask the operator for one."

shown := [substring(authority, 0, 100) | some authority in sort(refused)]

hosts contains host if some host in data.library_settings.egress.hosts

hosts contains host if some host in data.library_settings.egress.tenants[input.agent.tenant]

# Parameters that hold an address even when it is written without `https://`.
parameters := given if {
	given := data.library_settings.egress.parameters
} else := ["url", "uri", "host", "hostname", "domain", "endpoint", "webhook", "callback"]

refused contains authority if {
	some authority in authorities
	not allowed(authority)
}

# --- where the text says the address is --------------------------------------------------------------------------

# What stands between the slashes and the path. Clients disagree about spaces, backslashes and the number of slashes, so
# that a text which begins as an address is one up to its first `/`, `?` or `#`, whatever is before.
authorities contains found[1] if {
	some text in unbroken
	some found in regex.find_all_string_submatch_n(
		`^[\x00-\x20]*(?:(?i:https?|wss?|ftp):[/\\]*|(?i:[a-z][a-z0-9+.-]*):[/\\]{2,}|[/\\]{2,})([^/?#]*)`,
		text, 1,
	)
	not words(found[1])
}

# In the middle of a text an address ends where the next word begins.
authorities contains found[1] if {
	some text in texts
	some found in regex.find_all_string_submatch_n(
		`(?:(?i:https?|wss?|ftp):[/\\]+|(?i:[a-z][a-z0-9+.-]*):[/\\]{2,})([^\s/?#]*)`,
		text, -1,
	)
}

# A parameter that holds an address may leave out what others begin with. Without a host it stays where it is.
authorities contains found[1] if {
	some text in addresses
	not regex.match(`^[\x00-\x20]*(?:(?i:https?|wss?|ftp):|(?i:[a-z][a-z0-9+.-]*):[/\\]{2,}|[/\\]{2,})`, text)
	some found in regex.find_all_string_submatch_n(`^[\x00-\x20]*([^/?#]+)`, text, 1)
}

# An address with words after it: none of them can be taken for a part of the host.
words(authority) if {
	contains(authority, " ")
	not regex.match(`[@\\\x00-\x1f\x7f]`, authority)
}

# Many clients pass over tabs and line ends wherever they stand in an address.
unbroken contains regex.replace(text, `[\t\r\n]`, "") if some text in texts

texts contains text if {
	walk(input.call.arguments, [_, text])
	is_string(text)
}

# The names of parameters are the caller's text like any other.
texts contains text if {
	walk(input.call.arguments, [path, _])
	count(path) > 0
	text := path[count(path) - 1]
	is_string(text)
}

addresses contains regex.replace(text, `[\t\r\n]`, "") if {
	walk(input.call.arguments, [path, text])
	is_string(text)
	some name in path
	is_string(name)
	lower(name) in parameters
}

# --- and whether it is one of ours ---------------------------------------------------------------------------------

allowed(authority) if {
	[host, port] := place(authority)
	some pattern in hosts
	[wanted, ports] := entry(pattern)
	port in ports
	fits(host, wanted)
}

# Host in lower case without the dot that may end it, and port as written. Whatever is before an @ is a user's name, and
# what a text puts after an address is no part of it. Only letters, digits, dots and hyphens make a host: names in other
# scripts have to be written as they go over the wire.
place(authority) := [trim_suffix(lower(parts[1]), "."), parts[2]] if {
	bare := trim_right(authority, `)]}>'".,;:!\`)
	not regex.match(`[\\\x00-\x20\x7f]`, bare)
	named := split(bare, "@")
	[parts] := regex.find_all_string_submatch_n(`^([A-Za-z0-9._-]+)((?::[0-9]+)?)$`, named[count(named) - 1], 1)
}

# `host` is its usual ports, `host:8443` is this one.
entry(pattern) := [parts[0], {concat("", [":", parts[1]])}] if {
	contains(pattern, ":")
	parts := split(pattern, ":")
} else := [pattern, {"", ":80", ":443"}]

fits(host, wanted) if {
	host == lower(wanted)
} else if {
	startswith(wanted, "*.")
	endswith(host, lower(trim_prefix(wanted, "*")))
}
