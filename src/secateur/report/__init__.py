"""What a person (tables, a run's HTML page) or a program (documents) is told about a graph and about a result."""

from secateur.report.documents import describe_graph, describe_result
from secateur.report.html import write_report
from secateur.report.tables import graph_tables, listing, result_tables

__all__ = ["describe_graph", "describe_result", "graph_tables", "listing", "result_tables", "write_report"]
