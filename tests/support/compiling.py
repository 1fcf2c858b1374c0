"""Kernels compiled and not run, beside a test run that interprets them."""

import json
import os
import subprocess
import sys


def printed(script, *arguments):
    """The JSON that a script prints, in a process whose Triton compiles."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join(["tests", "scripts", *filter(None, [env.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-c", script, *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
