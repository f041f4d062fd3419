"""Generated programs, run in confinement and judged.

Imports nothing: its processes start without the packages of the environment.
"""
