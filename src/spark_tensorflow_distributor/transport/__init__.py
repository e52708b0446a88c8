"""Authenticated connections between hosts: the handshake, and the protection of what follows it."""
