"""Records runs in tracking systems, through callbacks on the driver."""
