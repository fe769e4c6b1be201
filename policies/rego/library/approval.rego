# Whether people have said yes to this very call: what the modules that hold calls ask before they hold one.
package library.approval

import rego.v1

# True when one approval carries every one of these roles. Without roles, any approval will do.
given(roles) if {
	is_string(input.approval.id)
	every role in roles {
		role in input.approval.roles
	}
}
