"""The structural core: any network in, an exactly equivalent smaller one out. Imports nothing of the other rooms."""

from secateur.graph.channels import Frozen, Group, Member, Seen
from secateur.graph.cost import Cost, CostModel
from secateur.graph.cut import Cut
from secateur.graph.following import follow
from secateur.graph.modules import Inputs
from secateur.graph.recorder import Unsupported
from secateur.graph.rules import Op, rule
from secateur.graph.sizes import Repair, SizeConflict
from secateur.graph.trace import Graph, Timing, trace
from secateur.graph.verify import Verification, verify

__all__ = [
    "Cost", "CostModel", "Cut", "Frozen", "Graph", "Group", "Inputs", "Member", "Op", "Repair", "Seen", "SizeConflict",
    "Timing", "Unsupported", "Verification", "follow", "rule", "trace", "verify",
]  # fmt: skip
