"""What happens to a network outside training: weights and run folders on disk, exports, latency."""

from secateur.runtime.again import export_folder
from secateur.runtime.check import check_folder
from secateur.runtime.deploying import deployed
from secateur.runtime.export import EXPORTERS, Exporter, export_model, export_onnx, export_pt2
from secateur.runtime.folder import describe_files, save_model
from secateur.runtime.hub import push_to_hub
from secateur.runtime.int8 import QUANTISERS, Quantiser, export_int8, open_exported
from secateur.runtime.latency import measure, measure_each
from secateur.runtime.loading import load
from secateur.runtime.weights import check_target, read_weights, save_weights

__all__ = [
    "EXPORTERS", "QUANTISERS", "Exporter", "Quantiser", "check_folder", "check_target", "deployed", "describe_files",
    "export_folder", "export_int8", "export_model", "export_onnx", "export_pt2", "load", "measure", "measure_each",
    "open_exported", "push_to_hub", "read_weights", "save_model", "save_weights",
]  # fmt: skip
