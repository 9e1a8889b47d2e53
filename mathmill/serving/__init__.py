"""What starts a server, knows when it is ready and which request fields it accepts."""
