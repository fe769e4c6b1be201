-- Tells the time, where the server can do more than that: no server begins a script that could write when it cannot.
return {'OK', clock()}
