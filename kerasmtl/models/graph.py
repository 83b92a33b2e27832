"""Order of a SavedModel's variables from input to output, read from the graph of its call.

`ModuleSpec.of` calls `variable_order` once for each module that is loaded; `layer_groups` then cuts
the order into layers. It is static analysis: a graph is flattened into nodes (`FlatGraph`), depths
are computed along its edges, and nothing is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter
from typing import Any

import tensorflow as tf

CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
CHOICES = {"If", "StatelessIf", "Case", "StatelessCase"}
LOOPS = {"While", "StatelessWhile"}
NEVER = (math.inf,)


def variable_order(function: Any, variables: Sequence[tf.Variable]) -> list[int]:
    """Sort variables by their first use in a call, from input to output.

    A SavedModel lists its variables in no useful order, and their names need not be numbered;
    `unfreeze(last=2)` needs to know which ones are nearest the output. A variable is placed where
    its value, or what is computed from variables and constants alone, first meets data: at the
    operation whose longest path from the inputs is shortest, then in program order. Variables that
    never meet data come last, in the order given.

    Args:
        function: the concrete function of the call for inference, traced here or restored.
        variables: the variables to sort; those of other modules count as never used.

    Returns:
        The indices of `variables`, sorted.
    """
    flat = FlatGraph(function)
    order = flat.from_input_to_output()
    depths = _depths(flat, order)
    # Backwards: a node that depends on no data passes its value on to the nodes that take it, so
    # where their value first meets data is where its own does.
    uses: list[tuple[float, ...]] = [NEVER] * len(flat.ops)  # (depth, node, which of its inputs)
    for number in reversed(order):
        for position, source in enumerate(flat.sources[number]):
            met = depths[number]
            use = uses[number] if met is None else (met, number, position)
            uses[source] = min(uses[source], use)
    places = {
        id(tensor): (*uses[number], number) if uses[number] != NEVER else NEVER
        for tensor, number in zip(function.captured_inputs, flat.captures, strict=True)
    }
    keys = [places.get(id(captured_as(variable)), NEVER) for variable in variables]
    return sorted(range(len(keys)), key=keys.__getitem__)


def captured_as(variable: tf.Variable) -> Any:
    """Return what represents a variable in the `captured_inputs` of a restored call.

    That is its handle; in the scope of a `tf.distribute` strategy, where a variable has a handle
    on each device, it is the variable itself.

    Args:
        variable: one that loading has created.
    """
    return variable if isinstance(variable, tf.distribute.DistributedValues) else variable.handle


def _depths(flat: FlatGraph, order: Sequence[int]) -> list[int | None]:
    """Return the length of the longest path from an argument to each node; None: no path.

    "Identity" nodes, which calls of functions are replaced by, add nothing: nesting a layer in more
    functions must not move it towards the output.
    """
    depths: list[int | None] = [None] * len(flat.ops)
    for number in flat.arguments:
        depths[number] = 0
    for number in order:
        above = [depth for source in flat.sources[number] if (depth := depths[source]) is not None]
        if above:
            depths[number] = max(above) + (flat.ops[number] != "Identity")
    return depths


class FlatGraph:
    """A concrete function as one list of nodes, numbered in program order.

    A call is replaced by the nodes of its function, its arguments and results by "Identity" nodes.
    The results of an If, Case or While are nodes of that name, which take the results of every
    branch. A node represents all outputs of its operation; control inputs are left out.

    Args:
        function: a concrete function, traced here or restored from a SavedModel.

    Attributes:
        ops: the type of operation of each node.
        sources: the numbers of the nodes that each node takes.
        arguments: the numbers of the nodes that take what the caller passes.
        captures: the numbers of the nodes that take `function.captured_inputs`.
    """

    def __init__(self, function: Any) -> None:
        definition = function.graph.as_graph_def()
        self._library = {entry.signature.name: entry for entry in definition.library.function}
        self.ops: list[str] = []
        self.sources: list[list[int]] = []
        found = self._expand(definition.node, {})
        inputs = [_pick(found, tensor.name) for tensor in function.inputs]
        passed = len(inputs) - len(function.captured_inputs)
        self.arguments, self.captures = inputs[:passed], inputs[passed:]

    def from_input_to_output(self) -> list[int]:
        """Return the numbers of the nodes, each after all that it takes.

        The order of a GraphDef is not always such an order.
        """
        # The loops of TF1 are cycles, closed by NextIteration.
        before = {
            number: [source for source in sources if self.ops[source] != "NextIteration"]
            for number, sources in enumerate(self.sources)
        }
        return list(TopologicalSorter(before).static_order())

    def _add(self, op: str, sources: Iterable[int] = ()) -> int:
        """Add a node; return its number.

        Its sources may be added later: a graph may use a name before it is defined.
        """
        self.ops.append(op)
        self.sources.append(list(sources))
        return len(self.ops) - 1

    def _expand(
        self, body: Iterable[tf.compat.v1.NodeDef], found: dict[str, list[int]]
    ) -> dict[str, list[int]]:
        """Add the nodes of a graph or function; return the nodes of each name, one per result.

        Args:
            body: the nodes of a GraphDef, or of a function in its library.
            found: the nodes of each name that are known before, such as the arguments of a
                function.
        """
        waiting: list[tuple[int, list[str]]] = []  # inputs by name: they may be defined later
        for node in body:
            sources = [text for text in node.input if not text.startswith("^")]
            called = self._called(node)
            if called:
                found[node.name] = self._enter(node.op, called, sources, waiting)
            else:
                found[node.name] = [self._add(node.op)]
                waiting.append((found[node.name][0], sources))
        for number, sources in waiting:
            self.sources[number] += [_pick(found, text) for text in sources]
        return found

    def _called(self, node: tf.compat.v1.NodeDef) -> list[Any]:
        """Return the functions that a node calls, by its name or in its attributes.

        All attributes are searched, since the name of the attribute differs: "f" of a call,
        "then_branch" of an If, "body" of a While.
        """
        names = [node.op]
        for value in node.attr.values():
            names += [value.func.name, *(entry.name for entry in value.list.func)]
        return [self._library[name] for name in names if name in self._library]

    def _enter(
        self, op: str, called: list[Any], sources: list[str], waiting: list[tuple[int, list[str]]]
    ) -> list[int]:
        """Add the functions of a call, a choice or a loop; return the nodes of its results.

        Args:
            op: the type of the operation that calls.
            called: the functions, from the graph's library; several for a choice or a loop.
            sources: what the operation takes, by name.
            waiting: gets the nodes whose sources are to be looked up when all names are known.

        Returns:
            The numbers of the nodes of its results; a single one for an operation such as a data
            set, which calls a function and returns something else than its results.
        """
        plain = op in CALLS or op in self._library
        results = []
        for function in called:
            found = {}
            # From the last on: a choice begins with what it chooses by, a data set ends with what
            # its function captures.
            texts = [[text] for text in reversed(sources)]
            for argument in reversed(function.signature.input_arg):
                entrance = self._add("Identity" if plain or op in CHOICES else op)
                found[argument.name] = [entrance]
                waiting.append((entrance, texts.pop(0) if texts else []))
            inner = self._expand(function.node_def, found)
            names = [function.ret[result.name] for result in function.signature.output_arg]
            results.append([_pick(inner, name) for name in names])
        if not plain and op not in CHOICES | LOOPS:  # such as a data set that maps a function
            number = self._add(op, [source for result in results for source in result])
            waiting.append((number, sources))
            return [number]
        numbers = []
        for k in range(max(map(len, results))):
            taken = [result[k] for result in results if k < len(result)]
            numbers.append(self._add("Identity" if plain else op, taken))
            if op in CHOICES:
                waiting.append((numbers[-1], sources[:1]))
        return numbers


def _pick(found: dict[str, list[int]], text: str) -> int:
    """Return the node of an input as graphs ("name:1") or functions ("name:out:1") write it.

    Graphs count outputs within the operation, functions within a named output of it; where an
    operation is one node for all of its outputs, that node stands for each.
    """
    name, *place = text.split(":")
    numbers = found[name]
    position = int(place[-1]) if place else 0
    return numbers[min(position, len(numbers) - 1)]
