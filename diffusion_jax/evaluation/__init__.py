"""Judging and drawing samples: sheets, a small classifier's figures, Frechet distances, two-dimensional metrics."""
