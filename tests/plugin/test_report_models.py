"""On real models, what a patch prints and what a report says never contradict each other, nor what runs."""

import re

import pytest
import torch
from _models import LIBRARIES
from support.patching import spy

import sigtorch
from sigtorch.plugin import report as reasons

SMALL = ["legacy_seresnet18", "mnasnet_small", "regnety_002", "rexnet_100", "semnasnet_075", "tinynet_e"]  # of timm
CHOSEN = {"timm": SMALL, "torchvision": ["efficientnet_b0", "regnet_y_400mf"], "transformers": None}  # None: all
NOT_PRINTED = {  # said only of what the patch says nothing about
    reasons.FORM_REASON, reasons.FUNCTION_REASON, reasons.AUTOGRAD_REASON, reasons.IN_PLACE_REASON,
    reasons.PYTORCH_REASON, reasons.SHARED_REASON,
}  # fmt: skip
PLACE = r"\S+\.py:\d+"


def contradictions(patch, report):
    """Yields the rows of a report that the patch contradicts."""
    rewritten = {place for note in patch.swapped.values() for place in re.findall(PLACE, note)}
    left = {}
    for lines in patch.left.values():
        for place, why in re.findall(rf"^({PLACE}): (.*)$", lines, re.MULTILINE):
            left.setdefault(place, set()).add(why)
    for row in report.products:
        if row.fused:
            agrees = row.place in rewritten or (row.kind == "glu" and not row.file)
        elif row.place in left:
            agrees = row.why in left[row.place] or row.place in rewritten
        elif row.place in rewritten:
            agrees = row.why not in NOT_PRINTED
        else:
            agrees = row.why != ""
        if not agrees:
            yield row


@pytest.mark.parametrize("library", CHOSEN)
def test_a_patch_and_its_report_agree(library, monkeypatch):
    pytest.importorskip(library)
    examples, total = LIBRARIES[library](), 0
    for name in CHOSEN[library] or examples:
        torch.manual_seed(0)
        model, inputs = examples[name].build().eval(), examples[name].inputs()
        patch = sigtorch.patch(model)
        report = patch.report(**inputs)
        assert not [*contradictions(patch, report)], name
        with monkeypatch.context() as patched, torch.no_grad():
            calls = spy(patched)
            model(**inputs)
        assert report.fused == sum(call != "sigmoid" for call in calls), name
        total += report.total
    assert total > 30
