"""One flat list of the operations of a call, those of the functions that it calls included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
CHOICES = {"If", "StatelessIf", "Case", "StatelessCase"}
LOOPS = {"While", "StatelessWhile"}


@dataclass
class Node:
    """An operation, and the numbers of the nodes whose values it takes."""

    op: str
    attr: Mapping[str, Any] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)


class FlatGraph:
    """A concrete function as one list of nodes, numbered in program order.

    A call is replaced by the nodes of its function, its arguments and results by "Identity" nodes.
    The results of an If, Case or While are nodes of that name, which take the results of every
    branch. A node stands for all outputs of its operation; control inputs are left out.

    Args:
        function: a concrete function, traced here or restored from a SavedModel.

    Attributes:
        nodes: the operations.
        arguments: the numbers of the nodes that take what the caller passes.
        captures: the numbers of the nodes that take `function.captured_inputs`.
        outputs: the numbers of the nodes that give the results.
    """

    def __init__(self, function: Any) -> None:
        definition = function.graph.as_graph_def()
        self._library = {entry.signature.name: entry for entry in definition.library.function}
        self.nodes: list[Node] = []
        found = self._expand(definition.node, {})
        inputs = [_pick(found, tensor.name) for tensor in function.inputs]
        passed = len(inputs) - len(function.captured_inputs)
        self.arguments, self.captures = inputs[:passed], inputs[passed:]
        self.outputs = [_pick(found, tensor.name) for tensor in function.outputs]

    def consumers(self) -> list[list[int]]:
        """Of every node, the nodes that take its value, in program order."""
        taken: list[list[int]] = [[] for _ in self.nodes]
        for number, node in enumerate(self.nodes):
            for source in dict.fromkeys(node.inputs):
                taken[source].append(number)
        return taken

    def from_input_to_output(self) -> list[int]:
        """The numbers of the nodes, each after all that it takes (program order need not be)."""
        nodes, consumers = self.nodes, self.consumers()
        # The loops of TF1 are cycles, closed by NextIteration.
        missing = [
            sum(nodes[source].op != "NextIteration" for source in set(node.inputs))
            for node in nodes
        ]
        order = [number for number, count in enumerate(missing) if count == 0]
        for number in order:  # grows while it is read
            if nodes[number].op == "NextIteration":
                continue
            for consumer in consumers[number]:
                missing[consumer] -= 1
                if missing[consumer] == 0:
                    order.append(consumer)
        return order

    def leading_to(self, ends: Iterable[int]) -> set[int]:
        """The numbers of the nodes that `ends` depend on, themselves included."""
        return _reachable(ends, [node.inputs for node in self.nodes])

    def reached_from(self, starts: Iterable[int]) -> set[int]:
        """The numbers of the nodes that depend on `starts`, themselves included."""
        return _reachable(starts, self.consumers())

    def _add(self, op: str, attr: Mapping[str, Any] | None = None) -> int:
        self.nodes.append(Node(op, attr or {}))
        return len(self.nodes) - 1

    def _expand(
        self, body: Iterable[tf.compat.v1.NodeDef], found: dict[str, list[int]]
    ) -> dict[str, list[int]]:
        """Add the nodes of a graph or function; the nodes of each name, one for each result."""
        waiting: list[tuple[int, list[str]]] = []  # inputs by name: they may be defined later
        for node in body:
            sources = [text for text in node.input if not text.startswith("^")]
            called = self._called(node)
            if called:
                found[node.name] = self._enter(node, called, sources, waiting)
            else:
                found[node.name] = [self._add(node.op, node.attr)]
                waiting.append((found[node.name][0], sources))
        for number, sources in waiting:
            self.nodes[number].inputs += [_pick(found, text) for text in sources]
        return found

    def _called(self, node: tf.compat.v1.NodeDef) -> list[Any]:
        names = [node.op]
        for value in node.attr.values():
            names += [value.func.name, *(entry.name for entry in value.list.func)]
        return [self._library[name] for name in names if name in self._library]

    def _enter(
        self,
        node: tf.compat.v1.NodeDef,
        called: list[Any],
        sources: list[str],
        waiting: list[tuple[int, list[str]]],
    ) -> list[int]:
        """Add the functions of a call, a choice or a loop; the numbers of its results."""
        plain = node.op in CALLS or node.op in self._library
        entrance = "Identity" if plain or node.op in CHOICES else node.op
        results = []
        for function in called:
            found = {}
            # From the last on: a choice begins with what it chooses by, a data set ends with what
            # its function captures.
            texts = [[text] for text in reversed(sources)]
            for argument in reversed(function.signature.input_arg):
                found[argument.name] = [self._add(entrance)]
                waiting.append((found[argument.name][0], texts.pop(0) if texts else []))
            inner = self._expand(function.node_def, found)
            names = [function.ret[result.name] for result in function.signature.output_arg]
            results.append([_pick(inner, name) for name in names])
        if not plain and node.op not in CHOICES | LOOPS:
            number = self._add(node.op, node.attr)
            self.nodes[number].inputs += [source for result in results for source in result]
            waiting.append((number, sources))
            return [number]
        chosen_by = sources[:1] if node.op in CHOICES else []
        return self._leave("Identity" if plain else node.op, results, chosen_by, waiting)

    def _leave(
        self,
        op: str,
        results: list[list[int]],
        chosen_by: list[str],
        waiting: list[tuple[int, list[str]]],
    ) -> list[int]:
        numbers = []
        for k in range(max(map(len, results))):
            numbers.append(self._add(op))
            self.nodes[numbers[-1]].inputs += [result[k] for result in results if k < len(result)]
            waiting.append((numbers[-1], chosen_by))
        return numbers


def _reachable(starts: Iterable[int], edges: list[list[int]]) -> set[int]:
    reached = set(starts)
    stack = list(reached)
    while stack:
        fresh = set(edges[stack.pop()]) - reached
        reached |= fresh
        stack += fresh
    return reached


def captured_as(variable: tf.Variable) -> Any:
    """What stands for a variable in the `captured_inputs` of a restored call: its very handle.

    In the scope of a `tf.distribute` strategy it is the variable: it has a handle on each device.
    """
    return variable if isinstance(variable, tf.distribute.DistributedValues) else variable.handle


def _pick(found: dict[str, list[int]], text: str) -> int:
    """The node of an input as graphs ("name:1") or functions ("name:result:1") write it."""
    name, *place = text.split(":")
    numbers = found[name]
    position = int(place[-1]) if place else 0
    return numbers[min(position, len(numbers) - 1)]
