"""What must not be lost: the registry and its content-addressed files. Imports neither torch nor the page."""
