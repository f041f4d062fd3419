"""Run generated programs in confinement and judge them.

Imports nothing: its processes start without the packages of the environment.
"""
