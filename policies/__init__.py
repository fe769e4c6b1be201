"""May this call happen? By rule; later also by people and by money.

- `document`: the input, the contract with those who write policies
- `decision`: the answer and its one parser; whatever is unclear is no answer
- `engine`: the seam, one question and one decision
- `pack`: policies as an interpreter takes them, data in slices
- `build`: from proven policies to a warmed engine, in slices
- `embedded`: the engine in this process, a clone of a warmed interpreter for every call
- `reads`: what a policy can read of its input, found in its syntax trees
- `projection`: the part of a question that is read
- `reuse`: decisions already made, by what they were made of
- `interpreter`: the Rego interpreter, fenced in
- `builtins`: the builtins that are ours, and those that policies do not get
- `capabilities`: what the embedded engine knows, as OPA's tools read it
- `load`: from paths to an engine: read, prove, build, warm
- `sources`: what the policy paths hold, and its revision
- `data`: data files, read so that no two readers could differ
- `history`: the revisions that were put to use, kept for a start without a sound policy
- `prove`: parse, lint and sample calls, in a child process
- `child`: the child process and its limits
- `lint`: what is wrong with policies before any is evaluated
- `negation`: where a `not` would mean one thing here and another on an OPA server
- `testing`: runs the tests that stand beside policies
- `watchdog`: ends this process when a policy does not come to an end
- `masks`: what of a call never reaches a record
- `approvals`, `budgets`: the seams for people and money
- `errors`: every way in which the question ends without a plain yes
- `rego/`: the shipped policy, with its tests
"""
