"""Recipes: from the points of a config to a system, one file per system."""
