"""Backfill: closes the gaps of a recording from the history that its venue, or another source, serves."""
