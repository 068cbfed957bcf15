"""Gradual channel pruning while training, by feature relevance scores."""

from secateur.methods.feature_relevance.method import ROW, FeatureRelevance

__all__ = ["ROW", "FeatureRelevance"]
