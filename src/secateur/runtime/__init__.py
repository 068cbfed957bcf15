"""What happens to a network outside training: its weights on disk."""

from secateur.runtime.weights import check_target, read_weights, save_weights

__all__ = ["check_target", "read_weights", "save_weights"]
