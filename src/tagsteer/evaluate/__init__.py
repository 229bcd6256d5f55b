"""Ratings to scores: protocols, intervals, tests, AxBench's own files, published figures. Knows no models."""
