"""The demonstration: the gateway in front of stand-in model servers that need no key and no network.

standin.py        what stand-ins share: an ASGI app that checks the key, remembers the call, misbehaves on request
openai_like.py    answers in the shapes of the OpenAI API
anthropic_like.py answers in the shapes of the Anthropic API
parallax_like.py  answers like a Parallax cluster, and fails like one; a program of its own, since it stands still
models.py         the first two stand-ins as one program
run.py            what `make run` executes: stand-ins, gateway, and what to try
"""
