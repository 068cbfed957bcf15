"""Adapters that write a network in the format of a runtime, one file a format; `runtime/export.py` lists them."""
