"""Compositions of data, model and objective on the one trainer."""
