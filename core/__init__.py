"""The machine-learning part: knows nothing of the page, the registry or the processes around it."""
