"""Follows runs in other systems, through callbacks on the driver."""
