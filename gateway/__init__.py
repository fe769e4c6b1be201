"""The front door: it owns sockets, order and outcome, and is the only room that knows the others.

app        composition root: settings become rooms, rooms the pipeline; edits of the configuration
deciding   which policy decides: loaded, fetched, kept, put on trial, swapped
trial      a policy on trial beside the one that decides
reload     how attempts to load something end
amendments  what an edit changes about money, limits and weights, told
opa        the way to an OPA server
assembly   everything built from one accepted configuration
pipeline   THE journey of one call: read this first
callids    what a call is called: a ULID
exchange   all that is known about one call
identity   a presented key becomes an agent, or a person
door       one agent's connection, with limits on what it may cost
cycle      one request of a connection and its answer, as the application sees them
lifeline   what may end a call before its time
lending    the money of one call: borrowed before it runs, settled when it is over
estimate   what a call can cost at most
quote      what the policy can ask about that
queues     where calls wait for money that others have borrowed
shortage   what an agent is told where money or a limit stands in its way
state      budgets and limits, kept in one process's file or on a server for several
forward    to the target and back
usage      what an answer has used that came in one piece
carrier    our HTTP/1.1 client: bytes to one origin, and its answer
probes     whether the nodes of targets are well, asked beside the calls
headers    which headers pass the gate
allowances  how near an agent is to its limits, as its client is told
reply      the answer on its way to the agent
problems   the table: error -> status, code, next step
obligations  what a yes demanded, fulfilled before anything leaves
trace      the trace that a call belongs to
records    what a call's records hold: its decisions, its outcome
decision_log  a decision as an event of OPA's decision log
ledger     the file: decision before, outcome after
backlog    lines of the ledger that wait
reader     the ledger, read back
collector  decisions uploaded in batches
traffic    what arms meet with, counted for people, rollouts and metrics
mirroring  a share of calls sent to a second target as well, and compared
steering   what people and rollouts make of routes' weights, here and at all gateways of one state
webhooks   people's own systems, told of what has happened
notices    what they are told of held calls, carried from the store until it is taken
slack      the same as messages for a channel
telemetry  every metric
spend      questions to the cost ledger, and their answers
parquet    those answers as a file for analysts
report     a page about a route, for people who decide; its drawings are in charts, its looks in report_style
readable   numbers and times as people read them
admin      the operators' listener, a file for each family of questions
worker     the process that serves both listeners
supervise  the process that keeps a worker serving
logs       the operator's log
cli        the `weighbridge` command; its parts are in *_commands
foresight  what will go wrong with a sound configuration, for `check`
terminal   what all commands share
remote     how commands talk to a running gateway
"""
