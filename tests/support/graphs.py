"""Functions that are compiled whole, and the graphs of them."""

import pytest
import torch

every_choice = pytest.mark.parametrize("backend", ["triton", "auto"])


class Graphs:
    """A backend that keeps the graphs, and hands them to another one."""

    def __init__(self, backend):
        self.graphs, self.backend = [], torch._dynamo.lookup_backend(backend)
        torch._dynamo.reset()

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return self.backend(graph, inputs)

    @property
    def targets(self):
        (graph,) = self.graphs
        return [node.target for node in graph.graph.nodes if node.op in ("call_function", "call_method")]

    @property
    def ours(self):
        """The names of the operators of ours in the only graph."""
        return [t.name().removeprefix("sigtorch::") for t in self.targets if getattr(t, "namespace", "") == "sigtorch"]


def compiled(function, backend="aot_eager"):
    """The function compiled whole, and its graphs."""
    graphs = Graphs(backend)
    return torch.compile(function, fullgraph=True, backend=graphs), graphs
