"""Puts core and storage together: the service, the engine process, the command line and the page."""
