"""Thin adapters to other people's training loops; each imports its framework only when it is itself imported."""
