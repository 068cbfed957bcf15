"""The version, in one place: that with which the package was installed, which the build takes from git's tags."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("secateur")
except PackageNotFoundError:  # run from a clone that is on the path and not installed
    __version__ = "0+unknown"
