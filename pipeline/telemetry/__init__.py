"""A run as other people's monitoring sees it: metrics that Prometheus reads, spans that OpenTelemetry carries.

Neither has a prompt, an answer, the id of a row or a key, and neither can delay a run or end one. Each needs an extra;
without the flag or the variables that ask for it nothing of it is imported.
"""
