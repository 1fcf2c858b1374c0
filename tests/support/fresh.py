"""Programs in processes of their own, which have imported torch and neither sigtorch nor Triton."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

_SERVER = """
import contextlib, io, json, os, sys, traceback
import torch

def outcome(code, variables):
    os.environ.clear()
    os.environ.update(variables)
    printed, raised = io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, {"__name__": "__main__"})
    except Exception as error:
        raised = "".join(traceback.format_exception(error))
    return {"printed": printed.getvalue(), "raised": raised}

outcomes = {}
for name, program in json.load(sys.stdin).items():
    receiver, sender = os.pipe()
    if not os.fork():
        with open(sender, "w") as answer:
            json.dump(outcome(*program), answer)
        sys.exit()
    os.close(sender)
    with open(receiver) as answer:
        outcomes[name] = json.loads(answer.read() or '{"printed": "", "raised": "it crashed"}')
    os.wait()
print(json.dumps(outcomes))
"""


def outcomes(programs):
    """Runs programs, given by name as code and environment, and returns what each printed, and raised if it did.

    They are forked from one process, for torch takes seconds to import.
    """
    given = json.dumps({name: (code, dict(variables)) for name, (code, variables) in programs.items()})
    command = [sys.executable, "-W", "ignore", "-c", _SERVER]
    done = subprocess.run(command, input=given, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    # What is compiled in C may have printed before.
    return {name: SimpleNamespace(**said) for name, said in json.loads(done.stdout.splitlines()[-1]).items()}
