"""Encrypts each user's mail at delivery to a key that only that user's secret opens."""
