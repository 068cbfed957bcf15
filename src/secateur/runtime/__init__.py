"""What happens to a network outside training: weights and run folders on disk, exports, latency."""

from secateur.runtime.again import export_folder
from secateur.runtime.check import check_folder
from secateur.runtime.deploying import deployed
from secateur.runtime.export import EXPORTERS, Exporter, export_model, export_onnx, export_pt2
from secateur.runtime.folder import describe_files, load, save_model
from secateur.runtime.int8 import QUANTISERS, Quantiser, export_int8, open_exported
from secateur.runtime.latency import measure
from secateur.runtime.weights import check_target, read_weights, save_weights

__all__ = [
    "EXPORTERS", "QUANTISERS", "Exporter", "Quantiser", "check_folder", "check_target", "deployed",
    "describe_files", "export_folder", "export_int8", "export_model", "export_onnx", "export_pt2",
    "load", "measure", "open_exported", "read_weights", "save_model", "save_weights",
]  # fmt: skip
