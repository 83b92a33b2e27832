"""Dynamic batching: how many calls, who waits for whom, and what an invalid example costs."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from kerasmtl.serving.batching import Batcher, Examples, predict_together
from kerasmtl.serving.config import ServerConfig
from kerasmtl.serving.errors import InvalidExamples


class Doubling:
    """A model of numbers, which refuses negative ones as TensorFlow would: the whole batch."""

    version = 1

    def __init__(self):
        self.batches, self.threads = [], set()

    def call(self, signature, inputs):
        values = inputs["x"]
        self.batches.append(values.tolist())
        self.threads.add(threading.get_ident())
        if (values < 0).any():
            raise InvalidExamples({0 if len(values) == 1 else -1: "negative"})
        return {"y": values * 2, "name": np.array([signature.encode()] * len(values), object)}


def examples(*values, signature="s", dtype=float):
    return Examples(signature, {"x": np.array(values, dtype)})


def together(model, requests, **limits):
    """The outcome of requests that arrive at the same time."""

    async def main():
        with ThreadPoolExecutor(4) as executor:
            batcher = Batcher(ServerConfig(**{"batch_wait": 10, **limits}), executor)
            calls = [batcher.predict(model, request) for request in requests]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert not batcher._queues and not batcher.waiting
            return results

    return asyncio.run(main())


def test_many_requests_are_one_call_on_another_thread():
    model = Doubling()
    results = together(model, [examples(n) for n in range(20)])
    assert [result["y"].tolist() for result in results] == [[2.0 * n] for n in range(20)]
    assert model.batches == [[float(n) for n in range(20)]]
    assert threading.get_ident() not in model.threads


@pytest.mark.parametrize("requests, sizes", [(10, [4, 4, 2]), (4, [4]), (1, [1])])
def test_a_batch_has_a_bound(requests, sizes):
    model = Doubling()
    results = together(model, [examples(n) for n in range(requests)], batch_size=4)
    assert sorted(map(len, model.batches), reverse=True) == sizes
    assert [float(result["y"][0]) for result in results] == [2.0 * n for n in range(requests)]


def test_a_large_request_is_cut_and_put_together_again():
    model = Doubling()
    values = list(range(11))
    (result,) = together(model, [examples(*values)], batch_size=4)
    assert result["y"].tolist() == [2.0 * n for n in values]
    assert max(map(len, model.batches)) == 4


def test_a_bad_example_costs_its_neighbours_no_answer():
    model = Doubling()
    requests = [examples(n) for n in range(15)] + [examples(1, -1, 2, -3)]
    results = together(model, requests)
    for n in range(15):
        assert results[n]["y"].tolist() == [2.0 * n]
    assert isinstance(results[15], InvalidExamples)
    assert results[15].reasons == {1: "negative", 3: "negative"}
    assert len(model.batches) <= 15  # halves, not one by one
    assert len(model.batches[0]) == 19


def test_the_number_of_a_bad_example_is_that_in_its_request():
    (result,) = together(Doubling(), [examples(*range(9), -1, 10)], batch_size=4)
    assert result.reasons == {9: "negative"}
    shown = result.named("instances")
    assert shown.status == 400 and "`instances`[9]: negative" in str(shown)


def test_the_order_of_the_inputs_cuts_no_batch_in_two():
    class Adding(Doubling):
        def call(self, signature, inputs):
            self.batches.append(len(inputs["x"]))
            return {"y": inputs["x"] - inputs["z"].sum(axis=1)}

    one, pair, model = np.ones(1), np.ones((1, 2)), Adding()
    orders = [{"x": one, "z": pair}, {"z": pair, "x": one}]
    results = together(model, [Examples("s", inputs) for inputs in orders])
    assert [result["y"].tolist() for result in results] == [[-1.0], [-1.0]]
    assert model.batches == [2]


def test_inputs_of_the_same_shape_and_other_names_are_apart():
    class Naming(Doubling):
        def call(self, signature, inputs):
            return {name: array for name, array in inputs.items()}

    requests = [Examples("s", {name: np.ones(1)}) for name in "xz"]
    assert [list(result) for result in together(Naming(), requests)] == [["x"], ["z"]]


def test_each_signature_shape_and_version_has_its_own_batch():
    first, second = Doubling(), Doubling()

    async def main():
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(ServerConfig(), executor)
            wide = Examples("s", {"x": np.zeros((1, 2))})
            await asyncio.gather(
                batcher.predict(first, examples(1)),
                batcher.predict(first, examples(2, signature="t")),
                batcher.predict(first, wide),
                batcher.predict(second, examples(3)),
            )

    asyncio.run(main())
    assert sorted(map(str, first.batches)) == ["[1.0]", "[2.0]", "[[0.0, 0.0]]"]
    assert second.batches == [[3.0]]


def test_while_the_model_runs_the_next_batch_gathers():
    inside, on = threading.Event(), threading.Event()

    class Slow(Doubling):
        def call(self, signature, inputs):
            inside.set()
            assert on.wait(30)
            return super().call(signature, inputs)

    model = Slow()

    async def main():
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(ServerConfig(batch_wait=0), executor)
            first = asyncio.ensure_future(batcher.predict(model, examples(0)))
            await asyncio.to_thread(inside.wait, 30)
            rest = [asyncio.ensure_future(batcher.predict(model, examples(n))) for n in range(1, 9)]
            left = asyncio.ensure_future(batcher.predict(model, examples(99)))
            await asyncio.sleep(0)
            left.cancel()
            await asyncio.sleep(0)
            on.set()
            await asyncio.gather(first, *rest)

    asyncio.run(main())
    assert model.batches == [[0.0], [float(n) for n in range(1, 9)]]  # whoever left is not run


def test_another_error_reaches_every_request_of_the_batch():
    class Broken(Doubling):
        def call(self, signature, inputs):
            return 1 / 0

    results = together(Broken(), [examples(1), examples(2)])
    assert [type(result) for result in results] == [ZeroDivisionError] * 2


def test_a_failure_of_one_example_that_is_right_costs_its_neighbours_no_answer():
    class Tight(Doubling):
        """Too little memory for more than two, and a fault of its own at 7."""

        def call(self, signature, inputs):
            if len(inputs["x"]) > 2 or 7 in inputs["x"]:
                raise MemoryError
            return super().call(signature, inputs)

    results = together(Tight(), [examples(n) for n in range(8)] + [examples(-1, 7)])
    assert [float(result["y"][0]) for result in results[:7]] == [2.0 * n for n in range(7)]
    assert [type(result) for result in results[7:]] == [MemoryError] * 2


@pytest.mark.parametrize("lie", [0, 7, 99])
def test_examples_that_the_model_names_are_cut_out_and_checked(lie):
    class Naming(Doubling):
        """Names all invalid examples at once: rightly, with `lie` 0."""

        def call(self, signature, inputs):
            try:
                return super().call(signature, inputs)
            except InvalidExamples:
                bad = np.flatnonzero(inputs["x"] < 0)
                raise InvalidExamples({int(n) + lie: "negative" for n in bad}) from None

    model = Naming()
    results = together(model, [examples(n) for n in (*range(20), -1, *range(10), -1)])
    for n, result in enumerate(results):
        if n in (20, 31):
            assert list(result.reasons) == [0]
        else:
            assert float(result["y"][0]) == 2.0 * (n if n < 20 else n - 21)
    if not lie:
        assert [len(batch) for batch in model.batches] == [32, 20, 1, 10, 1]


def test_bytes_keep_their_trailing_zeros():
    seen = []
    model = SimpleNamespace(call=lambda s, inputs: seen.extend(inputs["x"]) or {"y": inputs["x"]})
    data = [b"a\0\0", b"\0"]
    (out,) = predict_together(model, [examples(*data, dtype=object)])
    assert seen == data and out["y"].tolist() == data


def test_a_message_names_a_few_examples_only():
    text = str(InvalidExamples({n: "empty" for n in range(9)}).named("inputs"))
    assert text.count("empty") == 5 and text.endswith("and 4 more")
