"""The registry of adapters: what was made of what, what is active, and how to go back. No torch, no model.

`ledger.jsonl` is the truth, a chain of hashes; everything else follows from it and can be checked against it.
"""
