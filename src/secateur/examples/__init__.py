"""Networks and data of their own, as a project may have them, for the recipes of other tasks than classification."""
