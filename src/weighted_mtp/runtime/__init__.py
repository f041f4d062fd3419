"""Processes, devices and seeds. Nothing above this room assumes that there is one process."""
