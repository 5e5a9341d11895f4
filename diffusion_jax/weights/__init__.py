"""Weights of other projects: reading their files, and renaming what is in them."""
