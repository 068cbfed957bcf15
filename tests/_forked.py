"""Work in a process of its own that has imported everything already: a fork, which may be killed at any moment."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any


def forked(work: Callable[[], Any]) -> int:
    """Do it in a child; its exit status: 0, what it gave to `sys.exit`, 1 for an exception, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
