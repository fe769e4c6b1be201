"""The console: pages on the admin listener, on which people decide on held calls.

pages     what can be asked for, and what it is answered with
login     who is at the browser: sessions, and how often a token may be tried
guard     what a browser may do with the pages, and which requests come from them
view      an approval as the templates show it
pending   the calls that wait, in the order in which people want them
recent    what a session has called before

The pages do nothing themselves: each button asks the admin API, in process, as the person who is logged in.
"""
