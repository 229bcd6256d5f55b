"""Steering: interventions on SAE features, the batched engine that generates under them, and the baselines."""
