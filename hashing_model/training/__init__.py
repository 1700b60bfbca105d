"""Fitting a whole model: features of a sample, a head for each segment."""
