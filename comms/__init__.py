"""Bytes between peers: rounds, payloads, links and the ledger. Knows no model and no tensor."""
