"""Measures what an operator costs in quality on the embedded models; writes the tables in docs."""
