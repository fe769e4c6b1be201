"""What the gateway costs: one command that measures it beside its peers, and a soak that watches its memory.

scenarios    what is asked and what a right answer looks like
upstream     the stand-in model server that all contestants are put in front of
bare         the floor: the gateway's server and carrier with nothing in between
fleet        a gateway's configuration and envelopes for any number of agents
peers        other gateways: exact versions, installed on request
contestants  how each one is started and called
children     processes on one core, ended by their ids
wrk          load as fast as it goes; pace: load at a fixed rate
machine      cores, memory and versions, as the kernel tells them
table        medians, ratios, slopes and the table: arithmetic only
choosing     what a call's way costs: an arm, a node, what is counted of it
lending      what a call's money costs, on its own and on a Redis server
compare      the comparison; soak: memory over time; profile: where the time goes
"""
