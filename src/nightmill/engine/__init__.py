"""Engines keep the roles running. They hold no truth; all of one can die."""
