"""How much may be sent now: pace of requests, ledger of tokens, the day's count, and what refusals teach."""
