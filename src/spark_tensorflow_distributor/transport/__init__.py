"""Authenticated connections between hosts: the handshake, and the protection of the data that follows it."""
