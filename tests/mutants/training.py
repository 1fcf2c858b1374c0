"""Slips in what all training scripts share: the loop, several processes, checkpoints, options and output."""

from mutants.slip import Slip

TRAINING, DISTRIBUTED, CHECKPOINT = "scripts/_training.py", "scripts/_distributed.py", "scripts/_checkpoint.py"
OPTIONS, OUTPUT, FOLDER = "scripts/_options.py", "scripts/_output.py", "scripts/_folder.py"
CURVES = "tests/scripts/test_distributed.py -k 'same_global or speaks or float16 or digits'"
CURVE = "tests/scripts/test_options.py -k 'curve or clip or overflows or warming or between'"
RESUMED = "tests/scripts/test_checkpoint.py -k 'last_three or to_the_last_bit or learning_rate or no_number'"
KEPT = "tests/scripts/test_checkpoint.py -k 'torn or newer or room or random_state or other_tensors'"
SIGNALS = "tests/scripts/test_checkpoint.py tests/scripts/test_options.py -k signal"
HELD = "tests/scripts/test_folder.py -k 'not help and not ctrl and not make_train'"
REFUSED = "tests/scripts/test_training.py tests/scripts/test_text.py tests/scripts/test_checkpoint.py -k 'refuse'"

LOOP = [
    Slip(
        TRAINING,
        "self.args.parallel))\n        self.optimizer.zero_grad()\n        if",
        "self.args.parallel))\n        if",
        "tests/scripts/test_options.py -k warming",
        "warming up leaves gradients",
    ),
    Slip(TRAINING, "        return _distributed.whole(norm)\n", "        return norm\n", CURVES, "a norm in shards"),
    Slip(
        TRAINING,
        "nn.utils.clip_grads_with_norm_(self.model.parameters(), self.args.clip, norm)",
        "nn.utils.clip_grad_value_(self.model.parameters(), self.args.clip)",
        "tests/scripts/test_options.py -k clip",
        "values clipped, and not the norm",
    ),
    Slip(
        TRAINING,
        "        self.since = dict.fromkeys(since, 0)\n",
        "",
        "tests/scripts/test_text.py tests/scripts/test_options.py -k 'text_metrics or text_table or measur'",
        "a row about all steps so far",
    ),
    Slip(
        TRAINING, "        self.schedule.base_lrs = rates\n", "", RESUMED, "a learning rate that was given anew is lost"
    ),
    Slip(
        TRAINING,
        'KEPT = ("rows", "losses", "all", "since")',
        'KEPT = ("rows", "losses", "all")',
        "tests/scripts/test_options.py -k between",
        "sums since the last row are lost",
    ),
    Slip(
        TRAINING,
        "for run in runs if number % 2 else reversed(runs):",
        "for run in runs:",
        "tests/scripts/test_options.py -k turns",
        "the first run always goes first",
    ),
    Slip(
        TRAINING,
        "        return former\n    return path",
        "        return path\n    return path",
        "tests/scripts/test_checkpoint.py -k 'full_disk'",
        "a checkpoint that is not there called the last good one",
    ),
]

PROCESSES = [
    Slip(
        DISTRIBUTED,
        "        dist.broadcast_object_list(values)\n",
        "        pass\n",
        "tests/scripts/test_distributed.py -k says_counts",
        "each process believes itself",
    ),
    Slip(
        DISTRIBUTED,
        "    for _, failure in said:\n        if failure is not None:\n            raise OSError(failure)\n",
        "    if failure is not None:\n        raise OSError(failure)\n",
        "tests/scripts/test_distributed.py -k told_to_all",
        "a process that could not write is alone with that",
    ),
    Slip(
        DISTRIBUTED,
        "        model.set_requires_gradient_sync(last)",
        "        model.set_requires_gradient_sync(not last)",
        CURVES,
        "gradients exchanged but for the last part",
    ),
    Slip(DISTRIBUTED, "            module.reshard()\n", "            pass\n", CURVES, "weights that stay gathered"),
    Slip(
        DISTRIBUTED,
        "        except SystemExit:  # all come here together\n            _leave()\n            raise\n",
        "        except SystemExit:  # all come here together\n            raise\n",
        "tests/scripts/test_distributed.py -k 'signal or no_number or refuses'",
        "no goodbye at an end that all come to",
        "a race of gloo's threads at the very end, which no test can force",
    ),
]

CHECKPOINTS = [
    Slip(
        CHECKPOINT,
        "if path.name > final.name]",
        "if path.name > final.name][:0]",
        KEPT,
        "a newer checkpoint of an older training stays",
    ),
]

SHARED = [
    Slip(
        OPTIONS,
        "next((said for said in _distributed.gather(message) if said is not None), None)",
        "message",
        "tests/scripts/test_distributed.py -k 'refuses_ends'",
        "one process refuses, and the others wait",
    ),
]

FOLDERS = []

SLIPS = LOOP + PROCESSES + CHECKPOINTS + SHARED + FOLDERS
