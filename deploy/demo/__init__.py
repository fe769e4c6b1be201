"""The demonstration: the gateway in front of stand-in model servers that need no key and no network.

standin.py        what both share: an ASGI app that checks the key, remembers the call, misbehaves on request
openai_like.py    answers in the shapes of the OpenAI API
anthropic_like.py answers in the shapes of the Anthropic API
models.py         both stand-ins as one program
run.py            what `make run` executes: stand-ins, gateway, and what to try
"""
