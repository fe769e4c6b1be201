# Brings what is wrong with the library's settings to where the gateway asks for it when it loads a policy.
package weighbridge

import rego.v1

problems contains text if some text in data.library.settings.problems
