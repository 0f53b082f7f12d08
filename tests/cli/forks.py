"""Runs command lines each in a process of its own that has everything imported: a child is killed, its parent goes on.

Reads one JSON object per line, {"words": […], "log": file}, writes the child's id, and its end once it has come.
"""

import json
import os
import signal
import sys

import torch
import transformers.models.bert.modeling_bert  # noqa: F401

import unipelt.cli
import unipelt.cli.progress
import unipelt.cli.tables
import unipelt.train.fleet
import unipelt.train.predictor

torch.set_num_threads(1)
unipelt.train.fleet.SAVE_SHARE = 1e9  # a state an evaluation, on a slow disk too: kills wait for states
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background without
        for stream in (1, 2):
            os.dup2(log, stream)
        code = 1
        try:
            unipelt.cli.main(asked["words"])
        except SystemExit as ended:
            code = ended.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(log)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
