"""The emulator: an ASGI app that speaks the Gemini wire protocol, quotas and faults included."""
